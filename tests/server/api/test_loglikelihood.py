"""`/v1/loglikelihood` over a real, tiny model, and over a scripted engine."""

import json
import math
import socket
from collections.abc import Iterator

import httpx
import pytest
import torch

from server.engine.request import Output, Request
from server.presets.policy import Policy
from tests.models import tiny_model
from tests.server.api.conftest import StartApp
from tests.server.api.live import listening, wait_until
from tests.server.api.scripted import Harness, ScriptedEngine, ids, make_app, silent
from tests.server.api.tiny_server import tiny_server
from tests.server.engine.conftest import naive_logprobs
from tests.server.presets.tiny import World, preset

URL = "/v1/loglikelihood"
PRESETS = [
    {"name": "tutor", "sources": {"math": {"weight": 0.5}}, "defaults": {"temperature": 0}},
    {"name": "pool", "mode": "ensemble", "ensemble": {"rule": "linear_pool"}}
    | {"sources": {"math": {"weight": 1.0}, "code": {"weight": 3.0}}},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A server with few rows, an adapter and a preset of two revisions."""
    root = tmp_path_factory.mktemp("files")
    with tiny_server(root, PRESETS, max_rows=6, max_queued=3) as harness:
        patched = {"sources": {"math": {"weight": 0.9}}}
        assert harness.request("PATCH", "/v1/presets/tutor", json=patched).status_code == 200
        yield harness


def score(api: Harness, model: str = "base", **fields: object) -> list[dict[str, object]]:
    """The scores of a request."""
    response = api.post(URL, {"model": model, **fields})
    assert response.status_code == 200, response.text
    data: list[dict[str, object]] = response.json()["data"]
    return data


def logprobs(entry: dict[str, object]) -> list[float]:
    """Those that there are."""
    found = entry["logprobs"]
    assert isinstance(found, list)
    return [value for value in found if value is not None]


@pytest.mark.parametrize(
    ("model", "extension"),
    [
        *((model, None) for model in ("base", "math", "tutor", "tutor@1", "tutor:merge", "pool")),
        ("tutor:ensemble", {"weights": {"math": 1.5}}),
        ("tutor", {"weights": {"math": -0.7}}),
    ],
)
def test_numbers_are_those_of_an_echo(tiny: Harness, model: str, extension: object) -> None:
    """Whatever the model string and the overrides, a text's log-probabilities, tokens and
    provenance are those that `/v1/completions` echoes.
    """
    options = {} if extension is None else {"mergeserve": extension}
    body = {"model": model, "texts": ["the cat sat on"], "top_logprobs": 3, **options}
    scored = tiny.post(URL, body).json()
    echo = tiny.complete(
        model=model, prompt="the cat sat on", echo=True, logprobs=3, max_tokens=0, **options
    ).json()
    expected = echo["choices"][0]["logprobs"]
    (entry,) = scored["data"]
    assert scored["mergeserve"] == echo["mergeserve"]
    assert entry["tokens"] == expected["tokens"]
    assert entry["token_ids"] == list(ids("the cat sat on"))
    assert entry["logprobs"][0] is None
    assert entry["logprobs"][1:] == pytest.approx(expected["token_logprobs"][1:], abs=1e-4)
    for values, top in zip(entry["top_logprobs"][1:], expected["top_logprobs"][1:], strict=True):
        assert len(values) == 3
        assert max(top.values()) == pytest.approx(values[0], abs=1e-4)
    assert scored["usage"]["prompt_tokens"] == echo["usage"]["prompt_tokens"]


def test_numbers_are_those_of_transformers(tiny: Harness) -> None:
    """Texts and completions alike have transformers' log-probabilities in float32, to 1e-4."""
    prompts = [f"the {word} sat" for word in ("cat", "dog", "old mole")]
    completions = [" on it", " down.", " and thought of nothing much for a while"]
    whole = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    model = tiny_model()
    as_texts = score(tiny, texts=whole)
    as_pairs = score(tiny, prompts=prompts, completions=completions)
    for text, completion, first, second in zip(whole, completions, as_texts, as_pairs, strict=True):
        expected = naive_logprobs(model, ids(text))
        torch.testing.assert_close(torch.tensor(logprobs(first)), expected, atol=1e-4, rtol=0)
        rest = expected[-len(completion) :]
        torch.testing.assert_close(torch.tensor(logprobs(second)), rest, atol=1e-4, rtol=0)
        assert second["tokens"] == list(completion)


def test_an_ensemble_s_numbers_are_the_combined_ones(tiny: Harness) -> None:
    """A linear pool's probability of a token is the weighted mean of its members'."""
    parts = {
        name: logprobs(score(tiny, name, texts=["hello there"])[0]) for name in ("math", "code")
    }
    (entry,) = score(tiny, "pool", texts=["hello there"])
    expected = [
        math.log(0.25 * math.exp(one) + 0.75 * math.exp(other))
        for one, other in zip(parts["math"], parts["code"], strict=True)
    ]
    assert logprobs(entry) == pytest.approx(expected, abs=1e-4)
    body = tiny.post(URL, {"model": "pool", "texts": ["hello there"]}).json()
    assert (body["mergeserve"]["mode"], body["mergeserve"]["rule"]) == ("ensemble", "linear_pool")
    assert body["usage"]["prompt_tokens"] == 11
    assert body["usage"]["mergeserve"]["member_prompt_tokens"] == 22


def test_sums_are_over_what_is_scored(tiny: Harness) -> None:
    """Sum, mean and perplexity are those of the tokens that something predicts."""
    (entry,) = score(tiny, texts=["hello there"])
    values = logprobs(entry)
    assert (entry["num_tokens"], len(values)) == (10, 10)
    assert entry["sum"] == pytest.approx(sum(values))
    assert entry["mean"] == pytest.approx(sum(values) / 10)
    assert entry["perplexity"] == pytest.approx(math.exp(-sum(values) / 10))


def test_greedy_is_what_greedy_decoding_writes(tiny: Harness) -> None:
    """`is_greedy` holds for what the same model generates at temperature 0, and for nothing else.
    (Only prompts count after which the tiny model writes a character and not a piece of one.)
    """
    prompts, completions = [], []
    for prompt in ("the", "a", "cat", "sat", "on", "it", "old", "mole", "and", "dog", "b", "c"):
        answer = tiny.complete(model="tutor", prompt=prompt, max_tokens=1, temperature=0).json()
        text = answer["choices"][0]["text"]
        if text.isascii() and text:
            prompts += [prompt, prompt]
            completions += [text, "~" if text != "~" else "!"]
    assert len(prompts) >= 4
    entries = score(tiny, "tutor", prompts=prompts, completions=completions)
    assert [entry["is_greedy"] for entry in entries] == [True, False] * (len(prompts) // 2)


def test_many_texts_come_back_in_order(tiny: Harness) -> None:
    """More texts than rows and queue together are scored, each in its place."""
    texts = [f"text number {number} of many" for number in range(40)]
    entries = score(tiny, texts=texts)
    assert [entry["index"] for entry in entries] == list(range(40))
    assert ["".join(entry["tokens"]) for entry in entries] == texts  # type: ignore[arg-type]
    alone = score(tiny, texts=texts[17:18])[0]
    assert entries[17]["sum"] == pytest.approx(alone["sum"], abs=1e-3)


def test_what_came_before_is_not_read_again(tiny: Harness) -> None:
    """The continuations of one prompt share it: its blocks are computed once."""
    prompt = "A rather long question that is asked of everybody. " * 2
    body = {"model": "base", "prompts": [prompt] * 4, "completions": [" a", " b", " c", " d"]}
    usage = tiny.post(URL, body).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 3 * 96


def test_background_scoring_gives_the_same(tiny: Harness) -> None:
    """The priority changes when a text is scored, not how."""
    live = score(tiny, texts=["hello there"])
    assert score(tiny, texts=["hello there"], priority="background") == live


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "texts", "send either texts, or prompts with completions"),
        ({"texts": []}, "texts", "at least 1 item"),
        ({"prompts": [], "completions": []}, "prompts", "at least 1 item"),
        ({"texts": ["ab"], "prompts": ["a"]}, "prompts", "does not go with texts"),
        ({"texts": ["ab"], "completions": ["a"]}, "completions", "does not go with texts"),
        ({"prompts": ["a"]}, "completions", "is missing"),
        ({"completions": ["a"]}, "prompts", "is missing"),
        ({"prompts": ["a", "b"], "completions": ["c"]}, "completions", "1 items and prompts has 2"),
        ({"texts": "hello"}, "texts", "valid array"),
        ({"texts": ["ab", 5, None]}, "texts[1]", "texts[2]"),
        ({"texts": [[1, 2]]}, "texts[0]", "valid string"),
        ({"texts": ["hi", "", "x"]}, "texts[1]", "texts[2] has one token"),
        ({"texts": ["x" * 300, "hi", "y" * 299]}, "texts[0]", "texts[2] (299 tokens)"),
        ({"texts": ["hi"] * 1025}, "texts", "at most 1024"),
        ({"texts": ["hi"], "top_logprobs": 257}, "top_logprobs", "less than or equal to 256"),
        ({"texts": ["hi"], "top_logprobs": -1}, "top_logprobs", "greater than or equal"),
        ({"texts": ["h" * 200] * 100, "top_logprobs": 256}, "top_logprobs", "at most 2000000"),
        ({"texts": ["hi"], "max_tokens": 4}, "max_tokens", "unknown field"),
        ({"texts": ["hi"], "priority": "high"}, "priority", "'live' or 'background'"),
        ({"texts": ["hi"], "model": "nobody"}, "model", "nobody"),
        (
            {"texts": ["hi"], "mergeserve": {"weights": "auto:route"}},
            "mergeserve.weights",
            "'auto:route' chooses weights by a prompt",
        ),
        (
            {"texts": ["hi"], "mergeserve": {"members_top_k": 2}},
            "mergeserve.members_top_k",
            "goes with generating",
        ),
    ],
)
def test_bad_input(tiny: Harness, fields: dict[str, object], param: str, message: str) -> None:
    """What is wrong is refused by name, with the value and every index."""
    response = tiny.post(URL, {"model": "base", **fields})
    assert response.status_code == (404 if param == "model" else 400), response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_keys_and_policy_are_those_of_generating(start: StartApp) -> None:
    """The route needs the API key, and overrides what the operator allows."""
    closed = Policy(overrides="none", inline_recipes="off", serve_sources=False)
    api = start(api_key=["secret"], admin_key=["boss"], policy=closed)
    api.engine.script = scored
    body: dict[str, object] = {"model": "tutor", "texts": ["hello"]}
    headers = {"Authorization": "Bearer secret"}
    assert api.post(URL, body).status_code == 401
    assert api.post(URL, body, headers=headers).status_code == 200
    body["mergeserve"] = {"weights": {"math": 0.1}}
    assert api.post(URL, body, headers=headers).status_code == 403


def scored(request: Request) -> list[Output]:
    """Read the text: of 259 tokens each is as likely as the others."""
    assert request.reader is not None
    request.reader(0, torch.zeros(len(request.members), request.text_len, 259))
    return [Output("", (), finish_reason="length", num_cached_tokens=1)]


def test_a_uniform_model_has_the_vocabulary_as_perplexity(api: Harness) -> None:
    """Numbers are natural logarithms, and the answer is a list that names what made it."""
    api.engine.script = scored
    response = api.post(URL, {"model": "tutor", "prompts": ["a", "b"], "completions": ["bc", "d"]})
    body = response.json()
    assert response.headers["X-Mergeserve-Preset"] == "tutor@1"
    assert (body["object"], body["model"]) == ("list", "tutor")
    assert [entry["perplexity"] for entry in body["data"]] == [pytest.approx(259)] * 2
    assert [entry["num_tokens"] for entry in body["data"]] == [2, 1]
    assert "top_logprobs" not in body["data"][0]
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 0,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert {request.num_read for request in api.engine.requests} == {2, 1}
    assert {request.label for request in api.engine.requests} == {"tutor"}


def test_members_read_their_own_prompts(api: Harness) -> None:
    """A member with a prompt of its own reads the completion after that one; whole texts, and
    echoes, which it would not read, are refused.
    """
    guided = {
        "name": "guided",
        "sources": {"math": {"weight": 1.5}},
        "mode": "ensemble",
        "ensemble": {"rule": "task_arithmetic", "members": {"math": {"prompt": "Add! "}}},
    }
    created = api.post("/v1/presets", guided)
    assert created.status_code == 201, created.text
    api.engine.script = scored
    body = {"model": "guided", "prompts": ["1 + 1 ="], "completions": [" 2"]}
    assert api.post(URL, body).status_code == 200
    (request,) = api.engine.requests
    assert {member.prompt for member in request.members} == {ids("1 + 1 = 2"), ids("Add!  2")}
    assert request.num_read == 2
    refused = api.post(URL, {"model": "guided", "texts": ["1 + 1 = 2"]})
    assert "'math' reads a prompt of its own" in refused.json()["error"]["message"]
    echo = api.complete(model="guided", echo=True, logprobs=1, max_tokens=0)
    assert (echo.status_code, echo.json()["error"]["param"]) == (400, "echo")


def test_half_of_the_rows_are_left_to_others(start: StartApp) -> None:
    """No more texts are in the engine at once than half of the rows."""
    api = start()
    most = 0

    def script(request: Request) -> list[Output]:
        nonlocal most
        most = max(most, sum(not stream.finished for stream in api.engine.streams))
        return scored(request)

    api.engine.script = script
    assert api.post(URL, {"model": "base", "texts": ["hello"] * 30}).status_code == 200
    assert 1 <= most + 1 <= api.engine.config.max_rows // 2


def test_a_text_that_fails_is_named(api: Harness) -> None:
    """An error of the engine says which text it is about, and the others are freed."""

    def script(request: Request) -> list[Output]:
        if len(request.members[0].prompt) < 4:
            return [Output("", (), finish_reason="error", error="it broke")]
        return []

    api.engine.script = script
    response = api.post(URL, {"model": "base", "texts": ["hello", "hey", "hello"]})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "texts[1]: it broke"
    assert api.engine.cancelled == {0, 2}


def test_a_client_that_goes_frees_its_rows(world: World) -> None:
    """When the connection closes, no text of the request stays in the engine."""
    engine = ScriptedEngine()
    engine.script = silent
    catalog = world.open_with_sources()
    catalog.seed_presets([preset()], "the test")
    with listening(make_app(engine, catalog), engine) as live:
        content = json.dumps({"model": "base", "texts": ["hello"] * 9}).encode()
        url = httpx.URL(live.url)
        with socket.create_connection((url.host, url.port)) as connection:
            head = f"POST {URL} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: len(engine.requests) == 4)
        wait_until(lambda: engine.cancelled == {0, 1, 2, 3})
        assert len(engine.requests) == 4
