"""The official client, unmodified, against a real server."""

import asyncio
from collections.abc import Iterator

import openai
import pytest

from server.errors import QueueFullError
from tests.server.api.live import LiveServer, listening
from tests.server.api.scripted import ScriptedEngine, breaks, ids, make_app, piece, says
from tests.server.presets.tiny import World, preset

USER, ADMIN = "user-secret", "admin-secret"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with keys."""
    world = World(tmp_path_factory.mktemp("world"))
    engine = ScriptedEngine()
    catalog = world.open_with_sources()
    catalog.seed_presets([preset()], "the test")
    with listening(make_app(engine, catalog, api_key=[USER], admin_key=[ADMIN]), engine) as server:
        yield server
    world.close()


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    """A client that does not retry."""
    live.engine.script, live.engine.refusal = says("ok"), None
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=USER, max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    """The client lists models and reads one."""
    assert client.models.list().data[0].id == "tiny"
    assert client.models.retrieve("tutor").object == "model"


def test_chat(client: openai.OpenAI) -> None:
    """The client gets an answer, its usage, and the extension key."""
    raw = client.chat.completions.with_raw_response.create(model="tutor", messages=HELLO, n=2)
    answer = raw.parse()
    assert raw.headers["X-Mergeserve-Preset"] == "tutor@1"
    assert [choice.message.content for choice in answer.choices] == ["ok", "ok"]
    assert answer.usage.completion_tokens == 6
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.model_extra["mergeserve"]["revision"] == 1


def test_chat_stream(client: openai.OpenAI) -> None:
    """The client reads a stream to its end, with the usage in the last chunk."""
    stream = client.chat.completions.create(
        model="tutor", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "ok"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 3


def test_chat_logprobs(client: openai.OpenAI) -> None:
    """The client parses the log-probabilities of a chat."""
    answer = client.chat.completions.create(
        model="base", messages=HELLO, logprobs=True, top_logprobs=2, max_completion_tokens=1
    )
    entry = answer.choices[0].logprobs.content[0]
    assert (entry.token, entry.logprob, len(entry.top_logprobs)) == ("o", -0.5, 2)


def test_completion(client: openai.OpenAI) -> None:
    """The client completes a batch of token-id prompts with echoed log-probabilities."""
    answer = client.completions.create(
        model="base", prompt=[list(ids("ab")), list(ids("c"))], echo=True, logprobs=1, max_tokens=1
    )
    assert [choice.text for choice in answer.choices] == ["abo", "co"]
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5]


def test_completion_stream(client: openai.OpenAI) -> None:
    """The client reads a stream of completions."""
    stream = client.completions.create(model="base", prompt="hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "ok"


def test_extensions(client: openai.OpenAI) -> None:
    """What OpenAI does not have goes through extra_body."""
    extra = {"top_k": 5, "min_p": 0.1, "ignore_eos": True, "mergeserve": {"mode": "merge"}}
    assert client.completions.create(model="tutor", prompt="hi", extra_body=extra).choices


def test_errors(client: openai.OpenAI, live: LiveServer) -> None:
    """The client raises its own error for each status, with our message, param and code."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nobody", prompt="hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="base", messages=HELLO, tools=[{"type": "function"}])
    assert wrong.value.param == "tools"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="guess").models.list()
    live.engine.refusal = QueueFullError("full")
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="base", prompt="hi")


def test_error_inside_a_stream(client: openai.OpenAI, live: LiveServer) -> None:
    """The client raises when a stream breaks."""
    live.engine.script = breaks(piece("a"))
    stream = client.completions.create(model="base", prompt="hi", stream=True)
    assert next(stream).choices[0].text == "a"
    with pytest.raises(openai.APIError, match="it broke"):
        next(stream)


def test_user_key_cannot_edit(client: openai.OpenAI) -> None:
    """The client's key reads and generates, and does not edit."""
    with pytest.raises(openai.PermissionDeniedError):
        client.delete("/presets/tutor", cast_to=object)


async def _ask_async(url: str) -> str | None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=ADMIN, max_retries=0) as client:
        answer = await client.chat.completions.create(model="tutor", messages=HELLO)
        return answer.choices[0].message.content


def test_async_client(live: LiveServer) -> None:
    """The asynchronous client works too, and the admin key opens the user plane."""
    live.engine.script, live.engine.refusal = says("ok"), None
    assert asyncio.run(_ask_async(live.url)) == "ok"
