"""Recipes: what is accepted, every reason for what is not, and digests that see content alone."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.errors import RecipeError
from merging.methods import METHODS
from merging.methods.parameter import Parameter
from merging.recipe import Recipe
from merging.setting import Entry
from tests.merging.tiny import flat_base

BASE = flat_base()
DIGESTS = {"math": "sha256:1", "code": "sha256:2", "rude": "sha256:3"}


def recipe(method: str = "task_arithmetic", **fields: Any) -> Recipe:
    document = {"sources": {"math": {"weight": 0.6}, "code": {"weight": 0.4}}, **fields}
    return Recipe.model_validate({"method": method, **document})


def parameter(name: str) -> Parameter:
    return next(p for p in METHODS["task_arithmetic"].parameters if p.name == name)


def reasons(document: object) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as error:
        Recipe.model_validate(document)
    return error.value.reasons


def test_a_full_document_is_taken() -> None:
    """Every field of a preset's document that concerns the merge is accepted."""
    full = recipe(
        base_model="base",
        parameters={"lambda": [1.0, 0.5], "normalize": False},
        slices=None,
        dtype="bfloat16",
        seed=7,
    )
    assert full.seed == 7
    assert json.loads(full.model_dump_json())["sources"] == {
        "math": {"weight": 0.6},
        "code": {"weight": 0.4},
    }


def test_a_dumped_recipe_is_the_recipe() -> None:
    """JSON and back gives an equal recipe."""
    one = recipe(parameters={"lambda": [{"filter": "mlp", "value": [0, 1]}, {"value": 1}]})
    assert Recipe.model_validate_json(one.model_dump_json()) == one


def test_the_method_may_be_left_out() -> None:
    """Without a method a recipe is a task arithmetic, and is checked as one."""
    document = {"sources": {"math": {"weight": 0.6}}}
    assert Recipe.model_validate(document) == Recipe.model_validate(
        {"method": "task_arithmetic", **document}
    )
    assert reasons({"sources": {"math": {}}}) == ("sources.math.weight: is missing",)


def test_a_recipe_cannot_be_changed() -> None:
    """Recipes are values."""
    with pytest.raises(ValueError, match="frozen"):
        recipe().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "tiess"}, "method: 'tiess' is not known; known are task_arithmetic, linear"),
        ({"method": None}, "method: Input should be a valid string"),
        ({"sources": {}}, "sources: Dictionary should have at least 1 item"),
        ({"sources": [1]}, "sources: Input should be a valid dictionary"),
        ({"sources": {"math": 0.6}}, "sources.math: Input should be a valid dictionary"),
        ({"sources": {"math": {}}}, "sources.math.weight: is missing"),
        ({"sources": {"math": {"weight": math.nan}}}, "sources.math.weight: must be finite"),
        ({"sources": {"math": {"weight": "x"}}}, "sources.math.weight: must be a number"),
        (
            {"sources": {"math": {"weight": 1, "epsilon": 0.5}}},
            "sources.math.epsilon: task_arithmetic has no parameter 'epsilon'; it has weight,",
        ),
        (
            {"sources": {"math": {"weight": 1, "lambda": 1}}},
            "sources.math.lambda: belongs to the whole recipe; put it under 'parameters'",
        ),
        ({"sources": {"base": {"weight": 1}}}, "sources.base: is not a source of task_arithmetic"),
        ({"parameters": {"gamma": 0.1}}, "parameters.gamma: task_arithmetic has no parameter"),
        ({"parameters": {"normalize": 1}}, "parameters.normalize: must be true or false, got 1"),
        ({"parameters": {"lambda": [1, math.inf]}}, "parameters.lambda[1]: must be finite"),
        ({"parameters": None}, "parameters: Input should be a valid dictionary"),
        ({"base_model": 3}, "base_model: Input should be a valid string"),
        ({"base_model": ""}, "base_model: String should have at least 1 character"),
        (
            {"base_model": "math"},
            "sources.math: is not a source of task_arithmetic but its base_model, its delta is",
        ),
        ({"dtype": "int8"}, "dtype: Input should be 'bfloat16', 'float16' or 'float32'"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": "1"}, "seed: Input should be a valid integer"),
        ({"seed": 2**63}, "seed: Input should be less than"),
        ({"merge_method": "linear"}, "merge_method: Extra inputs are not permitted"),
    ],
)
def test_every_mistake_is_named(change: dict[str, object], reason: str) -> None:
    """One mistake gives one reason: the path of the offending value, and what it should be."""
    document = {"method": "task_arithmetic", "sources": {"math": {"weight": 1}}, **change}
    found = reasons(document)
    assert len(found) == 1
    assert found[0].startswith(reason)


def test_all_mistakes_are_listed_at_once() -> None:
    """Wrong types, unknown names and values that are not finite come in one error."""
    document = {
        "method": "linear",
        "sources": {"math": {"weight": math.inf, "density": 1}, "code": {}},
        "parameters": {"lambda": 1.0},
        "seed": "x",
        "colour": "red",
    }
    found = reasons(document)
    starts = ["seed", "colour", "parameters.lambda", "sources.math.weight", "sources.math.density"]
    for start in [*starts, "sources.code.weight"]:
        assert any(reason.startswith(start) for reason in found), start
    assert len(found) == 6


@pytest.mark.parametrize("document", [None, [], "x", 3])
def test_what_is_no_document_is_refused(document: object) -> None:
    """Anything but a mapping is a RecipeError too."""
    assert "valid dictionary" in reasons(document)[0]


def test_linear_takes_the_base_as_a_source() -> None:
    """The base may take part in a mean of models."""
    recipe("linear", sources={"base": {"weight": 1}, "math": {"weight": 1}})


def test_a_source_falls_back_to_the_recipe() -> None:
    """A parameter of sources under 'parameters' is for those that do not set it themselves."""
    shared = recipe(sources={"math": {"weight": 0.6}, "code": {}}, parameters={"weight": 0.2})
    weight = parameter("weight")
    assert shared.setting(weight, "math") == (Entry((0.6,)),)
    assert shared.setting(weight, "code") == (Entry((0.2,)),)


def test_a_filter_that_does_not_match_falls_through() -> None:
    """Precedence is the source's own setting, then the recipe's, then the method's default."""
    filtered = recipe(
        sources={"math": {"weight": [{"filter": "mlp", "value": 1}]}},
        parameters={"weight": 0.5, "lambda": [{"filter": "mlp", "value": 2}]},
    )
    assert filtered.setting(parameter("weight"), "math") == (Entry((1.0,), "mlp"), Entry((0.5,)))
    assert filtered.setting(parameter("lambda")) == (Entry((2.0,), "mlp"), Entry((1.0,)))


def test_the_canonical_text_has_defaults_and_no_names() -> None:
    """Canonical JSON is the whole content: sources by digest, defaults filled in."""
    text = recipe(sources={"math": {"weight": 1}}).canonical(DIGESTS, BASE)
    assert json.loads(text) == {
        "method": "task_arithmetic",
        "base": BASE.digest,
        "dtype": "float32",
        "slices": [
            {
                "num_layers": 4,
                "base_model": [BASE.digest, 0],
                "sources": [["sha256:1", 0, {"weight": 1.0}]],
                "parameters": {"lambda": 1.0, "normalize": False},
            }
        ],
        "seed": 0,
    }


def test_the_digest_ignores_names_order_and_spelling() -> None:
    """Other names, another order, spelled-out defaults: the same weights, the same digest."""
    expected = recipe().digest(DIGESTS, BASE)
    swapped = recipe(sources={"code": {"weight": 0.4}, "math": {"weight": 0.6}})
    renamed = recipe(sources={"x": {"weight": 0.6}, "a": {"weight": 0.4}})
    spelled = recipe(
        sources={"math": {"weight": [{"filter": "*", "value": [0.6]}]}, "code": {}},
        parameters={"weight": 0.4, "lambda": 1, "normalize": False},
        dtype="float32",
    )
    assert swapped.digest(DIGESTS, BASE) == expected
    assert renamed.digest({"x": "sha256:1", "a": "sha256:2"}, BASE) == expected
    assert spelled.digest(DIGESTS, BASE) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"sources": {"math": {"weight": 0.6000001}, "code": {"weight": 0.4}}},
        {"sources": {"math": {"weight": 0.4}, "code": {"weight": 0.6}}},
        {"sources": {"math": {"weight": 0.6}, "rude": {"weight": 0.4}}},
        {"sources": {"math": {"weight": 0.6}}},
        {"parameters": {"lambda": 0.9}},
        {"parameters": {"normalize": True}},
        {"seed": 1},
        {"tokenizer_source": "base"},
        {"method": "linear"},
    ],
)
def test_the_digest_sees_every_change(change: dict[str, Any]) -> None:
    """Another weight, source, parameter, seed, vocabulary or method is another digest."""
    assert recipe(**change).digest(DIGESTS, BASE) != recipe().digest(DIGESTS, BASE)


def test_the_dtype_of_the_digest_is_the_base_s() -> None:
    """That is what the result is of; the recipe's own is for files."""
    other = replace(BASE, dtype="bfloat16")
    assert recipe(dtype="bfloat16").digest(DIGESTS, BASE) == recipe().digest(DIGESTS, BASE)
    assert recipe().digest(DIGESTS, other) != recipe().digest(DIGESTS, BASE)


def test_the_digest_sees_content_and_base() -> None:
    """The same recipe of other content, or on another base, is another digest."""
    expected = recipe().digest(DIGESTS, BASE)
    other_base = flat_base()
    object.__setattr__(other_base, "digest", "sha256:other")
    assert recipe().digest({**DIGESTS, "math": "sha256:9"}, BASE) != expected
    assert recipe().digest(DIGESTS, other_base) != expected


def test_the_digest_tells_the_base_from_a_checkpoint_of_its_content() -> None:
    """Deltas to one are not planned as deltas to the other: the results are not the same bits."""
    twin = {**DIGESTS, "twin": BASE.digest}
    one = recipe().digest(twin, BASE)
    assert recipe(base_model="twin").digest(twin, BASE) != one
    listed, other = (
        recipe("linear", sources={"math": {"weight": 1}, name: {"weight": 1}})
        for name in ("base", "twin")
    )
    assert listed.digest(twin, BASE) != other.digest(twin, BASE)


def test_a_base_model_that_would_not_be_looked_at_is_a_mistake() -> None:
    """A method that takes its base as a source has none but by default."""
    for method in ("linear", "karcher", "passthrough"):
        sources = {"math": {"weight": 1} if method == "linear" else {}}
        document = {"method": method, "sources": sources}
        (reason,) = reasons({**document, "base_model": "chat"})
        assert reason.startswith(f"base_model: {method} has no base_model; list 'chat' among")
        part = {"sources": [{"model": "math", "layer_range": [0, 1]}], "base_model": "chat"}
        (reason,) = reasons({**document, "slices": [part]})
        assert reason.startswith(f"slices[0].base_model: {method} has no base_model")
        for fine in ("base", None):
            Recipe.model_validate({**document, "base_model": fine})


weights = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.floats(-5, 5), min_size=1, max_size=4
)


@given(weights, st.randoms())
def test_names_and_order_never_reach_the_digest(sources: dict[str, float], random: Any) -> None:
    """Renaming and reordering sources together with their content changes nothing."""
    content = {name: f"sha256:{name}" for name in sources}
    shuffled = random.sample(sorted(sources), len(sources))
    new_names = {name: f"n{index}" for index, name in enumerate(shuffled)}
    one = recipe(sources={name: {"weight": w} for name, w in sources.items()})
    other = recipe(sources={new_names[name]: {"weight": sources[name]} for name in shuffled})
    renamed = {new_names[name]: digest for name, digest in content.items()}
    assert one.canonical(content, BASE) == other.canonical(renamed, BASE)


@given(weights, st.data())
def test_every_single_weight_reaches_the_digest(sources: dict[str, float], data: Any) -> None:
    """Changing any one weight changes the digest."""
    content = {name: f"sha256:{name}" for name in sources}
    one = recipe(sources={name: {"weight": w} for name, w in sources.items()})
    changed = data.draw(st.sampled_from(sorted(sources)))
    edited = {**sources, changed: sources[changed] + 0.001}
    other = recipe(sources={name: {"weight": w} for name, w in edited.items()})
    assert one.digest(content, BASE) != other.digest(content, BASE)
