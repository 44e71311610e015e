"""Streams: frames, usage, provenance, and errors before and after the first token."""

import asyncio
import json

import pytest

from server.api import openai
from server.engine.request import Output, Request
from server.errors import QueueFullError
from tests.server.api.conftest import StartApp
from tests.server.api.scripted import Harness, breaks, ids, piece, says, silent, sse_events


def chunks(body: str) -> list[dict[str, object]]:
    """The objects of a stream that ends as it should."""
    *events, last = sse_events(body)
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def test_completion_stream(api: Harness) -> None:
    """Each output is a chunk of the same id; first and last say what made them."""
    response = api.complete(model="tutor", stream=True)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["X-Mergeserve-Preset"] == "tutor@1"
    found = chunks(response.text)
    assert [chunk["choices"][0]["text"] for chunk in found] == ["o", "k", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, None, "stop"]
    assert {chunk["object"] for chunk in found} == {"text_completion"}
    assert len({chunk["id"] for chunk in found}) == 1
    assert ["mergeserve" in chunk for chunk in found] == [True, False, True]
    assert not any("usage" in chunk for chunk in found)


def test_chat_stream(api: Harness) -> None:
    """The first chunk of a chat says who speaks, the last one has an empty delta."""
    found = chunks(api.chat("hi", stream=True).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "o"}, {"content": "k"}, {}]
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert found[0]["mergeserve"] == found[-1]["mergeserve"]


@pytest.mark.parametrize("route", ["complete", "chat"])
def test_usage_chunk(api: Harness, route: str) -> None:
    """With include_usage every chunk has a usage of null, and one more without choices has it."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last = chunks(getattr(api, route)(**options).text)
    assert all(chunk["usage"] is None for chunk in parts)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert "mergeserve" in last


def test_benchmark_request(api: Harness) -> None:
    """What `vllm bench serve --backend openai` sends is served."""
    response = api.complete(
        repetition_penalty=1.0,
        max_tokens=2,
        logprobs=None,
        stream=True,
        stream_options={"include_usage": True},
        ignore_eos=True,
        temperature=0.0,
        best_of=1,
    )
    assert chunks(response.text)[-1]["usage"]["completion_tokens"] == 2


def test_choices_of_a_stream(api: Harness) -> None:
    """The chunks of several choices carry their index, and each choice finishes."""
    found = chunks(api.complete(prompt=["a", "b"], n=2, stream=True).text)
    texts = dict.fromkeys(range(4), "")
    for chunk in found:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert set(texts.values()) == {"ok"}
    finished = [c for chunk in found for c in chunk["choices"] if c["finish_reason"]]
    assert len(finished) == 4
    assert "mergeserve" in found[-1]


def test_streamed_echo_and_offsets(api: Harness) -> None:
    """In a stream the prompt comes with the first chunk, and offsets go on from chunk to chunk."""
    found = chunks(api.complete(prompt="añ", echo=True, logprobs=0, stream=True).text)
    assert found[0]["choices"][0]["text"] == "año"
    offsets = [o for chunk in found for o in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert len(offsets) == len(ids("añ")) + 3
    assert offsets == sorted(offsets)


def test_chat_stream_logprobs(api: Harness) -> None:
    """Each chunk brings the log-probabilities of its own tokens."""
    found = chunks(api.chat("hi", stream=True, logprobs=True).text)
    tokens = [
        entry["token"]
        for chunk in found
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert tokens == ["o", "k", "<eos>"]


def test_line_separators_stay_inside_a_frame(api: Harness) -> None:
    """No character of a text can be taken for the end of a line, whatever a client splits at."""
    text = "a\n\r\u2028\u2029\x85é"
    api.engine.script = lambda request: [piece(text, "stop")]
    body = api.complete(stream=True).text
    assert body.isascii()
    assert chunks(body)[0]["choices"][0]["text"] == text


@pytest.mark.parametrize("stream", [True, False])
def test_error_before_the_first_token_has_a_status(api: Harness, stream: bool) -> None:
    """What fails before the first token is an ordinary error response, also of a stream."""
    api.engine.script = breaks()
    response = api.complete(stream=stream)
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "it broke",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }


def test_error_after_the_first_token_is_a_frame(api: Harness) -> None:
    """What fails later is the error object as a frame, then [DONE]."""
    api.engine.script = breaks(piece("a"))
    response = api.complete(stream=True)
    assert response.status_code == 200
    first, error = chunks(response.text)
    assert first["choices"][0]["text"] == "a"
    assert error["error"]["message"] == "it broke"


def test_failing_choice_frees_the_others(api: Harness) -> None:
    """When one choice fails, the rows of the others are freed at once."""
    scripts = [silent, breaks()]
    api.engine.script = lambda request: scripts[request.choice](request)
    assert api.complete(n=2).status_code == 500
    assert api.engine.cancelled == {0}


def test_bug_inside_a_stream_is_not_shown(api: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours inside a stream is a frame without details."""
    service = api.app.state.lifecycle.service
    monkeypatch.setattr(service.tokenizer, "token_name", None)
    api.engine.script = lambda request: [piece("a"), piece("b", "stop")]
    error = chunks(api.complete(stream=True, logprobs=1).text)[-1]["error"]
    assert error["code"] == "internal_error"
    assert "NoneType" not in error["message"]


def test_full_queue(api: Harness) -> None:
    """A full queue is 429 with Retry-After, before any header of a stream is sent."""
    api.engine.refusal = QueueFullError("8 requests wait", retry_after=3)
    response = api.complete(stream=True)
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "3"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_request_timeout(start: StartApp) -> None:
    """A request that takes too long is 503 with the setting's name, and its rows are freed."""
    api = start(request_timeout=0.05)
    api.engine.script = silent
    response = api.complete(n=2)
    assert response.status_code == 503
    assert "--request-timeout" in response.json()["error"]["message"]
    assert api.engine.cancelled == {0, 1}


def test_request_timeout_inside_a_stream(start: StartApp) -> None:
    """A stream that takes too long ends with an error frame, and its rows are freed."""
    api = start(request_timeout=0.05)
    api.engine.script = lambda request: [piece("a")]
    assert chunks(api.complete(stream=True).text)[-1]["error"]["code"] == "request_timeout"
    assert api.engine.cancelled == {0}


def test_one_timeout_for_all_that_a_request_waits_for(start: StartApp) -> None:
    """A prompt that chooses its weights is scored and answered within one --request-timeout."""
    api = start(request_timeout=0.5)

    def late(request: Request) -> list[Output]:
        outputs = api.engine.emit, len(api.engine.streams) - 1, *says("a")(request)
        asyncio.get_running_loop().call_later(0.3, *outputs)
        return []

    api.engine.script = late
    response = api.complete(model="tutor", mergeserve={"weights": "auto:route"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "request_timeout"
    assert [request.path for request in api.engine.requests] == ["scoring", "blend"]


def test_a_request_that_is_over_is_not_queued(
    start: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the prompt alone took longer than --request-timeout, nothing is generated."""
    api = start(request_timeout=0.02)
    api.engine.script = says("a")
    encode = openai.encode_prompts

    async def slow(*arguments: object) -> object:
        await asyncio.sleep(0.05)
        return await encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(openai, "encode_prompts", slow)
    assert api.complete().json()["error"]["code"] == "request_timeout"
    assert api.engine.requests == []


def test_end_cancels_nothing(api: Harness) -> None:
    """A request that ended by itself is not cancelled."""
    api.engine.script = says("abc")
    api.complete()
    api.complete(stream=True)
    assert api.engine.cancelled == set()
