"""`/v1/completions`: prompts, choices, echo, log-probabilities, provenance."""

import pytest

from server.engine.request import Output, TokenLogprobs
from tests.server.api.conftest import StartApp
from tests.server.api.scripted import Harness, ids, says
from tests.server.presets.tiny import tiny_base


def test_answer_has_openais_shape(api: Harness) -> None:
    """A completion has the fields and object name of OpenAI's, and says what produced it."""
    response = api.complete(max_tokens=5)
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert isinstance(body["created"], int)
    assert body["model"] == "base"
    assert body["choices"] == [
        {"index": 0, "text": "ok", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    digest = body["mergeserve"].pop("digest")
    assert body["mergeserve"] == {
        "preset": None,
        "revision": None,
        "mode": "merge",
        "path": "base",
    }
    assert digest.startswith("sha256:")
    assert body["system_fingerprint"] == "fp_" + digest.removeprefix("sha256:")[:12]


@pytest.mark.parametrize(
    ("model", "label"), [("tutor", "tutor@1"), ("tutor@1", "tutor@1"), ("tutor:merge", "tutor@1")]
)
def test_preset_is_named_in_body_and_header(api: Harness, model: str, label: str) -> None:
    """A preset's answer names it and its revision, and echoes the model string as it was sent."""
    response = api.complete(model=model)
    assert response.headers["X-Mergeserve-Preset"] == label
    assert response.json()["model"] == model
    provenance = response.json()["mergeserve"]
    assert (provenance["preset"], provenance["revision"]) == ("tutor", 1)
    assert provenance["path"] == "blend"


def test_source_alone_has_no_preset(api: Harness) -> None:
    """An adapter called by its own name is a blend of no preset."""
    response = api.complete(model="math")
    assert response.headers["X-Mergeserve-Preset"] == "math"
    assert response.json()["mergeserve"]["preset"] is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", ["hi"]),
        (["a", "bc"], ["a", "bc"]),
        (list(ids("xyz")), ["xyz"]),
        ([list(ids("a")), list(ids("bc"))], ["a", "bc"]),
    ],
)
def test_four_forms_of_prompt(api: Harness, prompt: object, expected: list[str]) -> None:
    """A prompt is a string, strings, token ids or lists of token ids; each gets a choice."""
    body = api.complete(prompt=prompt).json()
    prompts = [request.members[0].prompt for request in api.engine.requests]
    assert prompts == [ids(text) for text in expected]
    assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))
    assert body["usage"]["prompt_tokens"] == sum(len(text) for text in expected)


def test_text_prompts_get_what_the_tokenizer_adds(api: Harness, monkeypatch) -> None:
    """A text prompt is encoded with special tokens, a prompt of token ids is used as it is."""
    service = api.app.state.lifecycle.service
    encode = type(service.tokenizer).encode
    monkeypatch.setattr(
        type(service.tokenizer),
        "encode",
        lambda self, text, add_special_tokens=True: [1] * add_special_tokens + encode(self, text),
    )
    api.complete(prompt="hi")
    api.complete(prompt=[5, 6])
    assert [request.members[0].prompt[0] for request in api.engine.requests] == [1, 5]


def test_n_choices_share_a_seed(api: Harness) -> None:
    """Each choice is one engine request: same prompt, same seed, numbered; indices go by prompt."""
    body = api.complete(prompt=["a", "b"], n=3, seed=7).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert [request.choice for request in api.engine.requests] == [0, 1, 2, 0, 1, 2]
    assert {request.sampling.seed for request in api.engine.requests} == {7}
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 6 * 3


def test_choices_without_a_seed_share_a_random_one(api: Harness) -> None:
    """Without a seed the choices of a prompt share a drawn one, and equal prompts do not."""
    api.complete(prompt=["a", "a"], n=2)
    seeds = [request.sampling.seed for request in api.engine.requests]
    assert seeds[0] == seeds[1]
    assert seeds[2] == seeds[3]
    assert seeds[0] != seeds[2]


def test_negative_seed_is_usable(api: Harness) -> None:
    """A negative seed reaches the engine as it is: a group takes seeds modulo 2^64."""
    assert api.complete(seed=-2).status_code == 200
    assert api.engine.requests[0].sampling.seed == -2


def test_seed_minus_one_is_none(api: Harness) -> None:
    """Clients that cannot leave the seed out send -1: each request then draws its own."""
    for _ in range(2):
        api.complete(seed=-1)
    first, second = (request.sampling.seed for request in api.engine.requests)
    assert first != second
    assert -1 not in (first, second)


def test_request_is_labelled_for_metrics(api: Harness) -> None:
    """The engine's statistics get the preset's name, and never the model string."""
    api.complete(model="tutor@1")
    api.complete(model="base")
    assert [(r.label, r.path, r.mode) for r in api.engine.requests] == [
        ("tutor", "blend", "merge"),
        ("", "base", "merge"),
    ]


def test_echo_of_text(api: Harness) -> None:
    """With echo, the text begins with the prompt as it was sent."""
    assert api.complete(prompt="héllo", echo=True).json()["choices"][0]["text"] == "héllook"


def test_echo_of_token_ids(api: Harness) -> None:
    """With echo, a prompt of token ids is decoded, special tokens included."""
    body = api.complete(prompt=[1, *ids("hi")], echo=True).json()
    assert body["choices"][0]["text"] == "<bos>hiok"


def test_logprobs_are_parallel_lists(api: Harness) -> None:
    """Log-probabilities come as parallel lists: tokens, values, alternatives by text, offsets."""
    body = api.complete(max_tokens=2, logprobs=2).json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["o", "k"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"o": -0.5, "p": -1.5}, {"k": -0.5, "l": -1.5}],
        "text_offset": [0, 1],
    }


def test_logprobs_zero_tells_of_the_token_alone(api: Harness) -> None:
    """logprobs 0 reports each token's own value and no alternative."""
    body = api.complete(max_tokens=1, logprobs=0).json()
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"o": -0.5}]
    assert api.engine.requests[0].sampling.logprobs == 0


def test_echoed_logprobs_begin_with_null(api: Harness) -> None:
    """What `lm-eval` asks for: the prompt's values, null for the first, then the new token's."""
    body = api.complete(
        prompt=[list(ids("abc"))], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    ).json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c", "o"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert logprobs["top_logprobs"] == [None, {"b": -0.5}, {"c": -0.5}, {"o": -0.5}]
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert api.engine.requests[0].sampling.prompt_logprobs == 1


def test_echo_without_generation(api: Harness) -> None:
    """With max_tokens 0, echo and logprobs give the prompt's log-probabilities and nothing else."""
    body = api.complete(prompt="abc", echo=True, logprobs=0, max_tokens=0).json()
    choice = body["choices"][0]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert body["usage"]["completion_tokens"] == 0


def test_alternatives_that_are_no_text_are_told_apart(api: Harness) -> None:
    """Pieces of characters are entries of their own, in OpenAI's form."""
    half = ids("é")
    token = TokenLogprobs(half[0], -3.0, ((half[1], -0.1), (half[0], -3.0)))
    api.engine.script = lambda request: [Output("?", (token,), finish_reason="length")]
    logprobs = api.complete(logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"bytes:\\xa9": -0.1, "bytes:\\xc3": -3.0}]
    assert logprobs["tokens"] == ["bytes:\\xc3"]


def test_minus_infinity_is_written_as_a_number(api: Harness) -> None:
    """JSON has no infinity: an impossible token has the value that vLLM uses."""
    token = TokenLogprobs(5, float("-inf"), ((6, -0.1), (7, float("-inf"))))
    api.engine.script = lambda request: [Output("?", (token,), finish_reason="length")]
    logprobs = api.complete(logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-9999.0]
    assert sorted(logprobs["top_logprobs"][0].values()) == [-9999.0, -9999.0, -0.1]


def test_usage_counts_cached_tokens_once(api: Harness) -> None:
    """Cached tokens are the first choice's of each prompt: later ones find what it has read."""
    api.engine.script = says("ok", num_cached_tokens=1)
    usage = api.complete(prompt=["aa", "bb"], n=3).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_every_token_counts(api: Harness) -> None:
    """The end token is counted and reported like any other, as `lm-eval` needs."""
    body = api.complete(logprobs=0).json()
    assert body["usage"]["completion_tokens"] == len(body["choices"][0]["logprobs"]["tokens"]) == 3
    assert body["choices"][0]["logprobs"]["tokens"][-1] == "<eos>"


def test_name_of_the_base_that_is_not_ascii(start: StartApp) -> None:
    """A base of any name is served: the header is percent-encoded, the body is not."""
    api = start(base=tiny_base("Café"))
    response = api.complete(model="Café")
    assert response.headers["X-Mergeserve-Preset"] == "Caf%C3%A9"
    assert response.json()["model"] == "Café"
