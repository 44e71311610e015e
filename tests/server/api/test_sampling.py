"""Sampling parameters: the request's, then the preset's, then OpenAI's; and what has to fit."""

import pytest

from server.engine.request import SamplingParams
from tests.server.api.conftest import StartApp
from tests.server.api.scripted import CONFIG, Harness, says
from tests.server.presets.tiny import preset

DEFAULTS = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "max_tokens": 9,
    "min_tokens": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "repetition_penalty": 1.1,
    "stop": ["x"],
    "stop_token_ids": [7],
    "seed": 3,
}


def sampled(api: Harness, **fields: object) -> SamplingParams:
    """The parameters that the engine gets of a completion."""
    response = api.complete(**fields)
    assert response.status_code == 200, response.text
    return api.engine.requests[-1].sampling


@pytest.fixture
def tuned(api: Harness) -> Harness:
    """An application with a preset that sets every default."""
    catalog = api.app.state.lifecycle.service.catalog
    catalog.seed_presets([preset("tuned", defaults=DEFAULTS)], "the test")
    return api


def test_openais_defaults(api: Harness) -> None:
    """A completion has 16 tokens at temperature 1, and nothing is truncated or penalised."""
    found = sampled(api)
    assert found == SamplingParams(max_tokens=16, temperature=1.0, seed=found.seed)


def test_presets_defaults(tuned: Harness) -> None:
    """Where the request says nothing, the preset's defaults apply."""
    found = sampled(tuned, model="tuned")
    for name, value in DEFAULTS.items():
        assert getattr(found, name) == (tuple(value) if isinstance(value, list) else value)


def test_request_wins(tuned: Harness) -> None:
    """The request's own values win over the preset's, also those that equal OpenAI's."""
    asked = {
        "temperature": 0,
        "top_p": 1,
        "top_k": -1,
        "min_p": 0,
        "max_tokens": 4,
        "min_tokens": 0,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "stop": [],
        "stop_token_ids": [],
        "seed": 5,
    }
    expected = SamplingParams(max_tokens=4, temperature=0.0, seed=5)
    assert sampled(tuned, model="tuned", **asked) == expected


def test_null_is_not_given(tuned: Harness) -> None:
    """A field that is null is as good as absent."""
    fields = dict.fromkeys([*DEFAULTS, "n", "stream", "echo", "logit_bias", "user"])
    assert sampled(tuned, model="tuned", **fields).temperature == 0.7


def test_seed_minus_one_is_none_at_every_place(tuned: Harness) -> None:
    """A request's -1 wins over the preset's seed, and a preset's -1 is no seed: answers differ."""
    catalog = tuned.app.state.lifecycle.service.catalog
    catalog.seed_presets([preset("free", defaults={"seed": -1})], "the test")
    for fields in ({"model": "tuned", "seed": -1}, {"model": "free"}):
        seeds = {sampled(tuned, **fields).seed for _ in range(3)}
        assert len(seeds) == 3
        assert not seeds & {-1, DEFAULTS["seed"]}


def test_presets_limit_gives_way_to_the_context(tuned: Harness) -> None:
    """A preset's max_tokens is no request of the caller: it is cut to what fits."""
    found = sampled(tuned, model="tuned", prompt=[5] * (CONFIG.max_model_len - 1))
    assert (found.max_tokens, found.min_tokens) == (1, 1)


def test_default_limit_gives_way_to_the_context(api: Harness) -> None:
    """OpenAI's 16 tokens are cut to what fits."""
    assert sampled(api, prompt=[5] * (CONFIG.max_model_len - 3)).max_tokens == 3


def test_explicit_limit_must_fit(api: Harness) -> None:
    """A prompt and an explicit limit that exceed the context are refused with all the numbers."""
    response = api.complete(prompt=[5] * 100, max_tokens=29)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "max_tokens"
    assert all(number in error["message"] for number in ("128", "129", "100", "29"))
    assert sampled(api, prompt=[5] * 100, max_tokens=28).max_tokens == 28


@pytest.mark.parametrize("length", [CONFIG.max_model_len, CONFIG.max_model_len + 1])
def test_prompt_must_leave_room(api: Harness, length: int) -> None:
    """A prompt without room for one token is refused with both numbers."""
    error = api.complete(prompt=[5] * length).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert str(length) in error["message"]
    assert "128" in error["message"]


def test_scored_prompt_may_fill_the_context(api: Harness) -> None:
    """With max_tokens 0 nothing is generated, so the prompt may be as long as the context."""
    fields = {"echo": True, "logprobs": 0, "max_tokens": 0}
    assert sampled(api, prompt=[5] * CONFIG.max_model_len, **fields).max_tokens == 0
    assert api.complete(prompt=[5] * (CONFIG.max_model_len + 1), **fields).status_code == 400


def test_one_stop_string(api: Harness) -> None:
    """stop is a string or a list of them."""
    assert sampled(api, stop="END").stop == ("END",)


def test_logit_bias_keys_are_token_ids(api: Harness) -> None:
    """The keys of logit_bias are token ids, which JSON writes as strings."""
    assert sampled(api, logit_bias={"5": -100, "7": 1.5}).logit_bias == {5: -100.0, 7: 1.5}


def test_top_k_is_at_most_the_vocabulary(api: Harness) -> None:
    """A top_k beyond the vocabulary keeps every token."""
    assert sampled(api, top_k=10**6).top_k == 259


def test_tiny_temperature_is_greedy(api: Harness) -> None:
    """A temperature that is too small to divide by is greedy."""
    assert sampled(api, temperature=1e-30).temperature == 0.0


def test_limit_reaches_the_answer(api: Harness) -> None:
    """An answer that is cut says length."""
    api.engine.script = says("abcdef")
    choice = api.complete(max_tokens=3).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")


def test_servers_defaults_come_last(start: StartApp) -> None:
    """Of `--defaults` base and presets have what neither the request nor the preset gives."""
    api = start(defaults='{"temperature": 0.25, "top_p": 0.5, "max_tokens": 5}')
    catalog = api.app.state.lifecycle.service.catalog
    catalog.seed_presets([preset("warm", defaults={"temperature": 0.75})], "the test")
    base, warm = sampled(api, top_p=1), sampled(api, model="warm")
    assert (base.temperature, base.top_p, base.max_tokens) == (0.25, 1.0, 5)
    assert (warm.temperature, warm.top_p) == (0.75, 0.5)
