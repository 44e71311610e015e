"""Preset documents as users send them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.errors import RecipeError
from server.errors import InvalidRequestError
from server.presets.document import SERVER_FIELDS, PresetDocument, parse_document
from tests.server.presets.tiny import preset

WHOLE = {
    "name": "tutor",
    "description": "A patient tutor",
    "labels": {"team": "maths"},
    "mode": "merge",
    "method": "task_arithmetic",
    "base_model": "base",
    "sources": {
        "math": {"weight": 0.6},
        "code": {"weight": [{"filter": "mlp", "value": [0.3, 0.4]}, {"value": 0.5}]},
    },
    "parameters": {"lambda": 1.0},
    "slices": None,
    "dtype": None,
    "seed": 7,
    "ensemble": {"rule": "log_pool"},
    "overrides": "mode",
    "defaults": {"temperature": 0.7, "stop": ["\n"]},
    "pinned": True,
}


def refusal(data: object, **options: str) -> InvalidRequestError:
    """The error that data is refused with."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_document(data, **options)
    return caught.value


def test_defaults():
    """A document of a name and sources gets the default of every other field."""
    assert parse_document({"name": "tutor", "sources": {"math": {"weight": 0.6}}}).to_json() == {
        "name": "tutor",
        "description": "",
        "labels": {},
        "mode": "merge",
        "method": "task_arithmetic",
        "base_model": "base",
        "sources": {"math": {"weight": 0.6}},
        "parameters": {},
        "slices": None,
        "dtype": None,
        "seed": 0,
        "ensemble": {"rule": "task_arithmetic"},
        "overrides": None,
        "defaults": {},
        "pinned": False,
    }


def test_a_document_comes_back_as_it_was_sent():
    """Every field is taken, and given back with its value."""
    assert parse_document(WHOLE).to_json() == WHOLE


def test_a_tokenizer_source_is_there_where_it_is_set():
    """It is part of the recipe, and null is the same as none."""
    document = parse_document({**WHOLE, "tokenizer_source": "base"})
    assert document.to_json() == {**WHOLE, "tokenizer_source": "base"}
    assert parse_document({**WHOLE, "tokenizer_source": None}).to_json() == WHOLE


def test_a_document_survives_the_database():
    """A document written as JSON and read back is the same."""
    document = parse_document(WHOLE)
    assert PresetDocument.model_validate_json(document.model_dump_json()) == document


@pytest.mark.parametrize("data", [None, [], "tutor", 3, True])
def test_only_objects_are_documents(data):
    """What is not a JSON object is refused with an example of what is."""
    assert "a preset is a JSON object" in refusal(data).message


def test_every_mistake_is_listed():
    """An error names every field that is wrong, and points to the first one."""
    error = refusal({"name": "tutor", "mode": "both", "seed": "x", "wieght": 1})
    assert error.param == "mode"
    assert {"mode", "seed", "wieght"} <= {part.split(":")[0] for part in error.message.split("; ")}
    error = refusal({"name": "tutor", "mode": "both", "sources": {"math": {"weight": [math.inf]}}})
    first, second = error.message.split("; ")
    assert first == "sources.math.weight[0]: must be finite, got inf"
    assert second.startswith("mode: ")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"name": None}, "name", "valid string"),
        ({"name": "a b"}, "name", "'a b'"),
        ({"name": "tutor\n"}, "name", "match"),
        ({"wieght": 1}, "wieght", "unknown field; known are name, description"),
        ({"defaults": {"temprature": 1}}, "defaults.temprature", "known are temperature"),
        ({"ensemble": {"rul": 1}}, "ensemble.rul", "known are rule"),
        ({"ensemble": {"rule": "vote"}}, "ensemble.rule", "'vote'"),
        ({"overrides": "all"}, "overrides", "'all'"),
        ({"sources": {"math": "0.5"}}, "sources.math", "dictionary"),
        ({"sources": {"math": True}}, "sources.math", "dictionary"),
        ({"labels": {"team": 1}}, "labels.team", "string"),
        ({"pinned": "yes"}, "pinned", "boolean"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"sources": {"math": {"weight": float("nan")}}}, "sources.math.weight", "finite"),
        ({"sources": {"math": {"weight": [1, float("inf")]}}}, "sources.math.weight[1]", "finite"),
        ({"sources": {"math": {"weight": 10**400}}}, "sources.math.weight", "finite"),
        ({"defaults": {"temperature": float("-inf")}}, "defaults.temperature", "finite"),
        ({"description": "\ud800"}, "description", "Unicode"),
        ({"labels": {"\udfff": "x"}}, "labels", "Unicode"),
        ({"slices": {"a": ["\ud800"]}}, "slices.a[0]", "Unicode"),
        ({"\ud800": 1}, "fields", "Unicode"),
        ({"defaults": {"\ud800": 1}}, "defaults", "Unicode"),
    ],
)
def test_mistakes_name_their_field(fields, param, words):
    """A field that is wrong or unknown is named, with its value or what is known instead."""
    error = refusal({"name": "tutor", **fields})
    assert error.param == param
    assert words in error.message
    assert error.status == 400


def test_a_missing_name_is_named():
    """A document without a name is refused, unless the URL has it."""
    assert refusal({"sources": {}}).message == "name: is missing"
    assert parse_document({"sources": {}}, name="tutor").name == "tutor"


def test_the_name_may_be_repeated_and_not_changed():
    """A body may repeat the name of its URL; another one is refused."""
    assert parse_document({"name": "tutor"}, name="tutor").name == "tutor"
    error = refusal({"name": "other"}, name="tutor")
    assert error.param == "name"
    assert "cannot be renamed" in error.message


def test_what_the_server_added_is_dropped():
    """A document that was fetched can be sent back: the server's fields in it are dropped."""
    served = {**WHOLE, **dict.fromkeys(SERVER_FIELDS, "anything")}
    assert parse_document(served) == parse_document(WHOLE)


def test_hostile_depth_is_refused_cleanly():
    """A value nested hundreds of levels deep is refused and does not exhaust the stack."""
    nested: object = 1
    for _ in range(900):
        nested = [nested]
    assert refusal({"name": "tutor", "slices": nested}).status == 400


def test_numbers_are_compared_by_value():
    """1 and 1.0 are the same content, 1 and true are not, and the order of keys says nothing."""
    one = preset(sources={"a": {"weight": 1}, "b": {"weight": 2}})
    assert one.content() == preset(sources={"b": {"weight": 2.0}, "a": {"weight": 1.0}}).content()
    assert (
        preset(parameters={"normalize": 1}).content()
        != preset(parameters={"normalize": True}).content()
    )


@given(st.floats(-1e300, 1e300))
def test_content_tells_weights_apart(weight):
    """The smallest change of a weight is another content."""
    document = preset(sources={"math": {"weight": weight}})
    other = preset(sources={"math": {"weight": math.nextafter(weight, math.inf)}})
    assert document.content() != other.content()


def test_the_recipe_is_what_decides_the_weights():
    """The recipe has the document's method, sources, parameters and seed, and nothing else."""
    recipe = parse_document(WHOLE).recipe()
    assert recipe.method == "task_arithmetic"
    assert recipe.sources == WHOLE["sources"]
    assert recipe.parameters == {"lambda": 1.0}
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "tiez"}, "known are "),
        ({"sources": {"math": {}}}, "sources.math.weight"),
        ({"sources": {"math": {"weight": "heavy"}}}, "sources.math.weight"),
        ({"sources": {"math": {"weight": True}}}, "sources.math.weight"),
        ({"sources": {"math": {"wait": 1}}}, "sources.math.wait"),
        ({"parameters": {"lamda": 1}}, "parameters.lamda"),
        ({"seed": -1}, "seed"),
        ({"sources": {}}, "sources"),
    ],
)
def test_the_recipe_checks_its_own_fields(fields, words):
    """A method or parameter that does not exist is refused, with those that do."""
    with pytest.raises(RecipeError, match=words):
        preset(**fields).recipe()


def test_json_is_plain():
    """The document's JSON has plain JSON values only."""
    json.dumps(parse_document(WHOLE).to_json(), allow_nan=False)
