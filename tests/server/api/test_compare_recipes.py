"""A report names what it compared: revisions, weights, base and prompts."""

import pytest

from server.api.compare_recipes import describe, held_sources
from server.presets.document import parse_document
from server.presets.served import Overrides
from tests.server.api.comparing import result, says_yes, two_sources
from tests.server.api.conftest import StartApp
from tests.server.api.scripted import Harness
from tests.server.compare.synthetic import served


@pytest.fixture
def api(start: StartApp) -> Harness:
    return says_yes(start)


def document(**fields: object):
    return parse_document({"name": "tutor", **fields})


def test_a_result_says_where_it_comes_from(api: Harness) -> None:
    """In the JSON, in Markdown and on the page; other prompts have another digest."""
    two_sources(api)
    asked = {"candidates": None, "model": "tutor", "prompts_file": "held_out.jsonl"}
    found = result(api, html=True, **asked)
    about = found["about"]
    assert (about["preset"], about["prompts_file"]) == ("tutor@2", "held_out.jsonl")
    assert about["base_digest"].startswith("sha256:")
    assert about["created"] == found["created"]
    made_of = {c["name"]: c["recipe"] for c in found["candidates"]}
    assert made_of["merge"] == "task_arithmetic: math 0.5, code 0.5"
    assert made_of["ensemble"].startswith("task_arithmetic of ")
    for text in (found["markdown"].replace("\\", ""), found["html"], found["text"]):
        assert "tutor@2: merge against ensemble on held_out.jsonl" in text
    for text in (found["markdown"].replace("\\", ""), found["html"]):
        assert made_of["merge"] in text
        assert about["base"] in text
        assert about["base_digest"].removeprefix("sha256:")[:12] in text
    other = result(api, **{**asked, "prompts": ["three", "four"]})["about"]
    assert other["prompts_digest"] != about["prompts_digest"]


def test_a_request_s_own_weights_are_named(api: Harness) -> None:
    """And not those of the preset that they replace."""
    two_sources(api)
    less = {"model": "tutor", "mergeserve": {"weights": {"math": 0.1}}, "name": "less"}
    found = result(api, candidates=["tutor", less])
    assert found["candidates"][1]["recipe"] == "task_arithmetic: math 0.1, code 0.5"


def test_settings_in_words() -> None:
    """Gradients, filters, parameters of sources and of the method."""
    recipe = document(
        method="ties",
        sources={
            "a": {"weight": [0, 1.0], "density": 0.5},
            "b": {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 1}]},
        },
        parameters={"lambda": 5},
    )
    assert describe(served("tutor", "tutor", 1), recipe, Overrides()) == (
        "ties: a [0, 1] (density 0.5), b [mlp 0.3, 1], lambda 5"
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a": 0.5, "b": -0.3}, ("a",)),
        ({"a": 0, "b": 0.1}, ("b",)),
        ({"a": [0.0, 1.0], "b": [-1.0, 0.0]}, ("a",)),
        ({"a": [{"filter": "mlp", "value": 0.2}, {"value": 0}], "b": 1}, ("a", "b")),
    ],
)
def test_sources_that_count_for_a_candidate(weights, expected) -> None:
    """Only those that it holds with a weight above 0 somewhere can be asked of it."""
    sources = {name: {"weight": weight} for name, weight in weights.items()}
    assert held_sources(document(sources=sources), Overrides()) == expected
    assert held_sources(None, Overrides()) == ()
