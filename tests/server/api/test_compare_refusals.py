"""POST /v1/compare: what is refused before anything runs, and what is left out for lack of room."""

import dataclasses
import re

import pytest

from server.api import compare_room
from tests.server.api.comparing import compare, refused, result, says_yes, two_sources
from tests.server.api.conftest import StartApp
from tests.server.api.reading import compares
from tests.server.api.scripted import (
    CONFIG,
    Harness,
)


@pytest.fixture
def api(start: StartApp) -> Harness:
    """An application whose candidates answer yes, and the base no."""
    return says_yes(start)


BAD = [
    ({"prompts": []}, "prompts: is empty"),
    ({"prompts": None}, "send either prompts or messages"),
    ({"messages": [[{"role": "user", "content": "x"}]]}, "send either prompts or messages"),
    ({"prompts": None, "messages": []}, "messages: List should have at least 1 item"),
    ({"prompts": ["a", ""]}, "prompts: is empty"),
    ({"references": ["a"]}, "references: has 1 items and prompts 2: send one for each"),
    ({"tags": ["a", "b", "c"]}, "tags: has 3 items and prompts 2"),
    ({"references": ["a", ""]}, "references[1]: is empty: send null"),
    ({"scorer": "exact"}, "scorer: needs references"),
    ({"scorer": "vibes", "references": ["a", "b"]}, "there is no scorer 'vibes'; the scorers are"),
    (
        {"scorer": {"c": "exact"}, "references": ["a", "b"], "tags": ["a", "b"]},
        "scorer: names the tag 'c', which no prompt has",
    ),
    (
        {"scorer": "number", "references": ["4", "four"]},
        "references[1]: the scorer 'number' cannot apply: the reference 'four' has no number",
    ),
    ({"scorer": "json", "references": ["{", "1"]}, "references[0]: the scorer 'json' cannot"),
    ({"scorer": "regex", "references": ["a", "("]}, "references[1]: the scorer 'regex' cannot"),
    ({"candidates": []}, "candidates: List should have at least 1 item"),
    ({"candidates": None}, "candidates: name candidates, or a preset as model"),
    ({"model": "tutor"}, "model: says whose parts are compared"),
    ({"candidates": None, "model": "math"}, "model: 'math' is no preset"),
    ({"candidates": None, "model": "tutor:merge"}, "model: 'tutor:merge' names one mode"),
    ({"reference": 2}, "reference is 2, and there are 2 candidates, counted from 0: tutor, base"),
    ({"reference": "nobody"}, "reference: no candidate is called 'nobody'; there are tutor, base"),
    ({"margin": 0}, "margin: should be greater than 0"),
    ({"max_tokens": 0}, "max_tokens: should be greater than or equal to 1"),
    ({"max_tokens": 500}, "maximum context length is 128 tokens"),
    ({"references": ["x" * 130, "y"]}, "references[0] has 130 tokens and its prompt"),
    ({"prompts": ["x" * 130, "y"]}, "the prompt alone has"),
    ({"n": 2}, "n: unknown field"),
    ({"concurrency": 0}, "concurrency: should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused(api: Harness, fields: dict[str, object], message: str) -> None:
    """With the field, the value and the way out, before anything runs."""
    response = compare(api, **fields)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
    assert api.engine.requests == []


def test_unknown_candidates_are_named(api: Harness) -> None:
    """404 as for generation, with the candidate's place in the list."""
    response = compare(api, candidates=["tutor", "nobody"])
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["param"] == "candidates[1]"
    assert error["message"].startswith("candidates[1]: The model 'nobody' does not exist.")


def test_more_rows_than_there_are_is_refused(start: StartApp) -> None:
    """Nine different candidates read one text in nine rows; this server has eight."""
    api = start()
    many = [{"model": "tutor", "mergeserve": {"weights": {"math": i / 8}}} for i in range(9)]
    message = refused(api, candidates=many)
    assert "9 candidates read a text in 9 rows at once, and this server has 8" in message
    assert "--max-rows" in message


BY_PERPLEXITY = {"weights": "auto:prompt_perplexity"}
BY_ROUTE = {"weights": "auto:route"}


@pytest.mark.parametrize(
    ("weights", "candidates", "num_rows"),
    [
        ({}, ["tutor", ("tutor", BY_PERPLEXITY)], 2),
        ({}, ["tutor", ("tutor", BY_ROUTE)], 2),
        ({}, ["tutor", ("tutor", BY_ROUTE), ("tutor:ensemble", BY_ROUTE)], 2),
        ({}, ["math", "code", ("tutor", BY_ROUTE)], 2),
        ({"code": 0.0}, ["tutor:ensemble", ("tutor:ensemble", BY_PERPLEXITY)], 3),
        ({"math": 1.0, "code": 0.0}, ["math", ("tutor:ensemble", BY_PERPLEXITY)], 2),
        ({}, ["tutor:ensemble", ("tutor:ensemble", BY_PERPLEXITY)], 2),
    ],
)
def test_rows_of_weights_that_the_prompt_chooses_are_counted(
    start: StartApp, weights: dict[str, float], candidates: list, num_rows: int
) -> None:
    """As many as a prompt may need at most: what stands for them elsewhere may run fewer."""
    bodies = [
        {"model": c[0], "mergeserve": c[1]} if isinstance(c, tuple) else c for c in candidates
    ]
    sources = {name: {"weight": weight} for name, weight in weights.items()}
    for max_rows in (num_rows, num_rows - 1):
        api = start(config=dataclasses.replace(CONFIG, max_rows=max_rows))
        two_sources(api)
        api.request("PATCH", "/v1/presets/tutor", json={"sources": sources})
        if max_rows == num_rows:
            api.engine.script = compares({})
            assert result(api, candidates=bodies)["errors"] == []
        else:
            assert f"read a text in {num_rows} rows at once" in refused(api, candidates=bodies)


def test_prompts_of_members_that_the_prompt_may_choose_are_measured(api: Harness) -> None:
    """A source of weight 0 is a row if the prompt gives it weight, and reads its own system prompt
    then.
    """
    api.engine.script = compares({})
    two_sources(
        api,
        sources={"math": {"weight": 1.0}, "code": {"weight": 0.0}},
        ensemble={"members": {"code": {"system": "x" * 130}}},
    )
    talk = {"prompts": None, "messages": [[{"role": "user", "content": "hi"}]]}
    plain: list[object] = ["base", "tutor:ensemble"]
    assert result(api, candidates=plain, **talk)["errors"] == []
    chosen = {"model": "tutor:ensemble", "mergeserve": BY_PERPLEXITY}
    response = compare(api, candidates=["base", chosen], **talk)
    assert response.status_code == 400, response.text
    assert "maximum context length is 128 tokens" in response.json()["error"]["message"]


def test_more_positions_than_memory_holds_are_refused(
    api: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts times tokens times candidates are bounded, less tightly where none are shown."""
    monkeypatch.setattr(compare_room, "MAX_SHOWN_POSITIONS", 40)
    monkeypatch.setattr(compare_room, "MAX_POSITIONS", 80)
    assert len(result(api, max_tokens=10)["prompts"]) == 2
    message = refused(api, max_tokens=11)
    assert "2 prompts of 11 tokens for 2 candidates are 44 positions, of 40 allowed" in message
    assert '"positions": false, with which 80 are allowed' in message
    assert len(result(api, max_tokens=20, positions=False)["prompts"]) == 2
    assert "84 positions, of 80 allowed" in refused(api, max_tokens=21, positions=False)


def test_a_text_that_does_not_fit_the_cache_is_refused(start: StartApp) -> None:
    """Rows times tokens, with the way out."""
    api = start(config=dataclasses.replace(CONFIG, num_blocks=8))
    message = refused(api, candidates=["tutor", "base", "math"], max_tokens=60)
    assert re.search(r"in 3 rows does not fit the KV cache of 128 tokens.*--kv-memory", message)


def test_probes_are_dropped_where_rows_are_few(start: StartApp) -> None:
    """They explain; the comparison goes on without them, and says so."""
    api = start(config=dataclasses.replace(CONFIG, max_rows=3))
    api.engine.script = compares({})
    api.request("PATCH", "/v1/presets/tutor", json={"sources": {"code": {"weight": 0.5}}})
    found = result(api, candidates=["base", "tutor", "math"], references=["a", "b"])
    assert found["blame"] is None
    assert any("this server has 3 (--max-rows)" in note for note in found["notes"])
