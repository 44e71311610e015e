"""Loading, failing, serving, draining: what is answered when, and what the log says."""

import asyncio
import logging
import re
import threading

import httpx
import pytest
from fastapi import FastAPI

from server.api.lifecycle import Lifecycle
from server.api.service import Service
from server.app import create_app
from server.commands.serve import DrainingServer
from server.engine.errors import ModelLoadError
from server.engine.stats import StepStats
from server.settings import Settings
from tests.server.api.conftest import StartApp
from tests.server.api.live import listening, wait_until
from tests.server.api.scripted import (
    Harness,
    ScriptedEngine,
    breaks,
    make_app,
    running,
    silent,
    tokenizer,
)
from tests.server.presets.tiny import World


def _client(app: FastAPI) -> httpx.AsyncClient:
    """A client on the running event loop."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def test_listens_while_it_loads(world: World) -> None:
    """While the model loads the process is alive and not ready, and everything else is 503."""
    engine, may_load = ScriptedEngine(), threading.Event()
    catalog = world.open_with_sources()

    def load(settings: object, metrics: object) -> Service:
        assert may_load.wait(20)
        return Service(engine, tokenizer(), catalog)  # type: ignore[arg-type]

    app = create_app(Settings(), load=load)

    async def watch() -> None:
        async with app.router.lifespan_context(app):
            client = _client(app)
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/metrics")).status_code == 200
            for path in ("/readyz", "/v1/models", "/nothing"):
                response = await client.get(path)
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "loading"
                assert int(response.headers["Retry-After"]) > 0
            may_load.set()
            while (await client.get("/readyz")).status_code == 503:
                await asyncio.sleep(0.005)
            assert (await client.get("/v1/models")).status_code == 200

    asyncio.run(watch())


@pytest.mark.parametrize(
    ("error", "shown"),
    [(ModelLoadError("no config.json"), "no config.json"), (ValueError("oops"), "internal error")],
)
def test_failed_load_is_told(
    error: Exception, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that cannot be loaded is told on /readyz; only a bug has its traceback logged, and
    its text is not shown.
    """

    def load(settings: object, metrics: object) -> Service:
        raise error

    app = create_app(Settings(), load=load)
    with running(app, ScriptedEngine()) as harness:
        response = harness.get("/readyz")
        assert response.status_code == 503
        assert shown in response.json()["error"]["message"]
        assert harness.get("/healthz").status_code == 200
    assert ("Traceback" in caplog.text) is isinstance(error, ValueError)


def test_server_ends_when_loading_fails() -> None:
    """The command ends by itself, with exit code 1."""

    def load(settings: object, metrics: object) -> Service:
        raise ModelLoadError("no config.json")

    server = DrainingServer(create_app(Settings(), load=load), Settings(port=0))
    asyncio.run(asyncio.wait_for(server.serve(), 20))
    assert server.exit_code == 1


def test_stop_while_loading(world: World) -> None:
    """A server that is told to stop does not wait for a model that nobody will use."""
    may_load = threading.Event()

    def load(settings: object, metrics: object) -> Service:
        may_load.wait(20)
        raise ModelLoadError("too late")

    server = DrainingServer(create_app(Settings(), load=load), Settings(port=0))

    async def serve() -> None:
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        server.handle_exit(15, None)
        await asyncio.wait_for(serving, 20)

    asyncio.run(serve())
    assert server.is_loading
    assert server.exit_code == 0
    may_load.set()


def test_dead_engine(api: Harness) -> None:
    """When the engine has died, the process is neither alive nor ready, and says why."""
    api.engine.error = "the engine has stopped: boom"
    for path in ("/healthz", "/health", "/readyz", "/v1/models"):
        response = api.get(path)
        assert response.status_code == 503
        assert "boom" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/healthz", "/health", "/readyz"])
def test_probes(api: Harness, path: str) -> None:
    """Probes work with GET and HEAD."""
    assert api.get(path).status_code == 200
    head = api.request("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")


def test_draining_refuses_what_is_new(world: World) -> None:
    """A request that reaches a draining server is 503 and may be sent again elsewhere."""
    engine = ScriptedEngine()
    app = make_app(engine, world.open_with_sources())
    with running(app, engine) as harness:
        lifecycle: Lifecycle = app.state.lifecycle
        harness._portal.call(lifecycle.drain, 0.1)
        response = harness.complete()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        assert response.headers["Retry-After"]


def test_bug_is_500_with_a_traceback_in_the_log(
    api: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody expected is 500 without details for the caller; the log has them."""
    catalog = api.app.state.lifecycle.service.catalog
    monkeypatch.setattr(catalog, "presets", lambda: 1 / 0)
    response = api.get("/v1/presets")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "division" not in response.text
    assert "ZeroDivisionError" in caplog.text
    assert api.complete().status_code == 200


def test_one_line_a_request(api: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line for each request, with its outcome, and never what was said."""
    caplog.set_level(logging.INFO)
    api.complete(model="tutor", prompt="my secret")
    api.chat("my secret", temperature=7)
    api.get("/a%0Ab?message=my+secret")
    api.get("/healthz")
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("server.")]
    assert len(lines) == 3
    assert lines[0].startswith("POST /v1/completions 200 ")
    assert "preset=tutor@1" in lines[0]
    assert lines[1].startswith("POST /v1/chat/completions 400 ")
    assert lines[2].startswith("GET /a%0Ab 404 ")
    assert not any("secret" in line for line in lines)


def test_what_a_line_says(start: StartApp, caplog: pytest.LogCaptureFixture) -> None:
    """The reason of a refusal, the revision and author of an edit, the ensemble, the request's id;
    5xx is a warning.
    """
    api = start(admin_key=["root:admin"], overrides="weights")
    caplog.set_level(logging.INFO)
    admin = {"Authorization": "Bearer admin", "X-Request-Id": "r-1"}
    lines: list[logging.LogRecord] = []

    def told() -> str:
        lines[:] = [r for r in caplog.records if r.name == "server.api.access_log"]
        return lines[-1].getMessage()

    weight = {"sources": {"math": {"weight": 0.75}}}
    api.request("PATCH", "/v1/presets/tutor", json=weight, headers=admin)
    assert re.fullmatch(
        r"PATCH /v1/presets/tutor 200 [\d.]+s preset=tutor@2 key=root request_id=r-1", told()
    )
    api.complete(model="tutor:ensemble")
    assert "preset=tutor@2 mode=ensemble" in told()
    api.complete(model="tutor")
    assert "mode=" not in told()
    api.complete(temperature="my secret", top_q=1)
    assert told().endswith(": temperature: should be a valid number; top_q: unknown field")
    api.complete(model="tutr")
    assert "Did you mean 'tutor'" in told()
    api.request("PATCH", "/v1/presets/tutor", json=weight)
    assert ": this server needs a key" in told()
    api.engine.script = breaks()
    api.complete()
    assert ": it broke" in told()
    assert lines[-1].levelname == "WARNING"
    assert "secret" not in caplog.text


def test_request_id(api: Harness) -> None:
    """Every response has a request's id: the caller's, if it is one, else a new one."""
    assert api.get("/v1/models", headers={"X-Request-Id": "a-1"}).headers["X-Request-Id"] == "a-1"
    drawn = [api.get("/v1/models").headers["X-Request-Id"] for _ in range(2)]
    assert drawn[0] != drawn[1]
    odd = api.get("/v1/models", headers={"X-Request-Id": "a b"})
    assert odd.headers["X-Request-Id"] != "a b"


def test_requests_are_counted_by_route(api: Harness) -> None:
    """Requests are counted by route template, so that labels stay few."""
    for path in ("/v1/presets/tutor", "/v1/presets/nobody", "/a", "/b"):
        api.get(path)
    api.request("WEIRD", "/v1/models")
    text = api.get("/metrics").text
    requests = "mergeserve_http_requests_total"
    assert f'{requests}{{method="GET",route="/v1/presets/{{name}}",status="404"}} 1.0' in text
    assert f'{requests}{{method="GET",route="unmatched",status="404"}} 2.0' in text
    assert 'method="other"' in text


def test_idle_server_runs_nothing(api: Harness) -> None:
    """When nothing is open the gauges say so, even if no step has told."""
    api.app.state.metrics.step(StepStats(0.1, 2, 2, 2, 1, 0, 0.5, 0, 0, 0, 0))
    assert "mergeserve_num_requests_running 0.0" in api.get("/metrics").text


def test_abandoned_request_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A request whose client went away is in the log as well."""
    caplog.set_level(logging.INFO)
    engine = ScriptedEngine()
    engine.script = silent
    app = make_app(engine, world.open_with_sources())
    with listening(app, engine) as live:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{live.url}/v1/completions", json={"model": "base", "prompt": "hi"}, timeout=0.2
            )
        wait_until(lambda: " 499 " in caplog.text)


def test_service_is_closed(world: World) -> None:
    """When the application ends, what the service holds open is closed."""
    engine, closed = ScriptedEngine(), []
    catalog = world.open_with_sources()

    def load(settings: object, metrics: object) -> Service:
        return Service(engine, tokenizer(), catalog, close=lambda: closed.append(True))  # type: ignore[arg-type]

    with running(create_app(Settings(), load=load), engine):
        assert not closed
    assert closed
