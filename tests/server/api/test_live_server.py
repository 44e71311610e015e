"""A real server on a socket: disconnects, slow readers, draining."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.server.api.live import LiveServer, listening, wait_until
from tests.server.api.scripted import ScriptedEngine, make_app, piece, says, silent, sse_events
from tests.server.presets.tiny import World, preset

Serve = Callable[..., LiveServer]


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    """Start servers over scripted engines."""
    with ExitStack() as stack:

        def start(**settings: object) -> LiveServer:
            engine = ScriptedEngine()
            catalog = world.open_with_sources()
            catalog.seed_presets([preset()], "the test")
            app = make_app(engine, catalog)
            return stack.enter_context(listening(app, engine, **settings))

        yield start


@pytest.fixture
def live(serve: Serve) -> LiveServer:
    """A server."""
    return serve()


def body(**fields: object) -> dict[str, object]:
    """A completion."""
    return {"model": "tutor", "prompt": "hi", **fields}


def raw_request(live: LiveServer, **fields: object) -> socket.socket:
    """Send a completion over a bare socket, and read nothing."""
    content = json.dumps(body(**fields)).encode()
    url = httpx.URL(live.url)
    connection = socket.create_connection((url.host, url.port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_before_the_first_token(live: LiveServer, stream: bool) -> None:
    """When the client goes while it waits, every row of its request is freed at once."""
    live.engine.script = silent
    with raw_request(live, stream=stream, n=3):
        wait_until(lambda: len(live.engine.requests) == 3)
        assert not live.engine.cancelled
    wait_until(lambda: live.engine.cancelled == {0, 1, 2})


def test_disconnect_inside_a_stream(live: LiveServer) -> None:
    """When the client goes between two tokens, its row is freed before the next one."""
    live.engine.script = lambda request: [piece("a")]
    with raw_request(live, stream=True) as connection:
        received = b""
        while b"data: " not in received:
            received += connection.recv(4096)
        assert not live.engine.cancelled
    wait_until(lambda: live.engine.cancelled == {0})


def test_disconnect_while_the_prompt_is_scored(live: LiveServer) -> None:
    """When the client goes before its prompt has chosen the weights, the rows that score it are
    freed at once.
    """
    live.engine.script = silent
    with raw_request(live, mergeserve={"weights": "auto:route"}):
        wait_until(lambda: len(live.engine.requests) == 1)
        assert live.engine.requests[0].path == "scoring"
        assert not live.engine.cancelled
    wait_until(lambda: live.engine.cancelled == {0})


def test_disconnect_while_sending_the_body(live: LiveServer) -> None:
    """A client that goes in the middle of its body disturbs nobody."""
    url = httpx.URL(live.url)
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: 99\r\n"
            b'Content-Type: application/json\r\n\r\n{"mod'
        )
    assert httpx.post(f"{live.url}/v1/completions", json=body()).status_code == 200
    assert len(live.engine.requests) == 1


def test_tokens_are_sent_when_they_come(live: LiveServer) -> None:
    """Every token is sent at once: the client has one before the engine makes the next."""
    live.engine.script = lambda request: [piece("a")]
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body(stream=True)) as response:
        lines = (line for line in response.iter_lines() if line)
        for text in "bc":
            assert '"text":"' in next(lines)
            live.call(live.engine.emit, 0, piece(text))
        live.call(live.engine.emit, 0, piece("d", "stop"))
        assert [json.loads(line[6:])["choices"][0]["text"] for line in list(lines)[:-1]] == [
            "c",
            "d",
        ]


def test_slow_reader_blocks_nobody(live: LiveServer) -> None:
    """A client that does not read its stream delays no other client."""
    live.engine.script = lambda request: [piece("x" * 1000)] * 20_000 + [piece("", "stop")]
    with raw_request(live, stream=True):
        wait_until(lambda: bool(live.engine.requests))
        live.engine.script = says("ok")
        for _ in range(3):  # each would wait for ever, and time out
            assert httpx.post(f"{live.url}/v1/completions", json=body()).status_code == 200
        assert not live.engine.cancelled


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/models/tutor",
        "/v1/presets/tutor",
        "/v1/sources",
        "/v1/methods",
        "/metrics",
        "/healthz",
    ],
)
def test_head(live: LiveServer, path: str) -> None:
    """HEAD answers what GET answers, without the body (RFC 9110, 9.3.2)."""
    got, headed = (httpx.request(method, live.url + path) for method in ("GET", "HEAD"))
    assert (headed.status_code, headed.content) == (200, b"")
    for header in ("Content-Type", "ETag"):
        assert headed.headers.get(header) == got.headers.get(header)


def test_drain(serve: Serve) -> None:
    """Draining: not ready, 503 with Retry-After to what is new, running streams finish."""
    live = serve(shutdown_timeout=20.0)
    live.engine.script = lambda request: [piece("a")]
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body(stream=True)) as response:
        live.drain()
        ready = httpx.get(f"{live.url}/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
        assert httpx.get(f"{live.url}/healthz").status_code == 200
        refused = httpx.post(f"{live.url}/v1/completions", json=body())
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        live.call(live.engine.emit, 0, piece("b", "stop"))
        text = response.read().decode()
    assert sse_events(text)[-1] == "[DONE]"
    assert [json.loads(event)["choices"][0]["text"] for event in sse_events(text)[:-1]] == [
        "a",
        "b",
    ]
    assert live.join() == 0


def test_drain_gives_up(serve: Serve) -> None:
    """What still runs after --shutdown-timeout ends with an error frame, and the server ends."""
    live = serve(shutdown_timeout=0.2)
    live.engine.script = lambda request: [piece("a")]
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body(stream=True)) as response:
        live.drain()
        events = sse_events(response.read().decode())
    assert "shut down" in json.loads(events[-2])["error"]["message"]
    assert live.join() == 0


def test_two_servers_in_one_process(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two applications live side by side, each with its own presets, metrics and end."""
    first = serve()
    world = World(tmp_path_factory.mktemp("second"))
    engine = ScriptedEngine()
    with listening(make_app(engine, world.open_with_sources()), engine) as second:
        assert httpx.post(f"{second.url}/v1/completions", json=body()).status_code == 404
        assert httpx.post(f"{first.url}/v1/completions", json=body()).status_code == 200
        assert 'status="404"' not in httpx.get(f"{first.url}/metrics").text
        assert 'status="404"' in httpx.get(f"{second.url}/metrics").text
    world.close()
    assert httpx.post(f"{first.url}/v1/completions", json=body()).status_code == 200
