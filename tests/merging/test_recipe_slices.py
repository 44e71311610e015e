"""Slices of recipes: what is accepted, every mistake in them, and the sections that they become."""

from typing import Any

import pytest

from merging.errors import RecipeError
from merging.recipe import Recipe


def part(*models: tuple[Any, ...], **fields: Any) -> dict[str, Any]:
    """A slice of (model, low, high) or (model, low, high, parameters)."""
    sources = [
        {"model": name, "layer_range": [low, high], **({"parameters": own[0]} if own else {})}
        for name, low, high, *own in models
    ]
    return {"sources": sources, **fields}


def recipe(method: str, sources: Any, *slices: Any, **fields: Any) -> Recipe:
    settings = {name: {} for name in sources} if isinstance(sources, list) else sources
    data = {"method": method, "sources": settings, "slices": list(slices), **fields}
    return Recipe.model_validate(data)


def test_sections_are_slices() -> None:
    """Each says its models, where their layers start, and how many there are."""
    stack = recipe(
        "slerp",
        ["b"],
        part(("b", 3, 5), ("a", 0, 2)),
        part(("base", 1, 2), ("b", 4, 5), base_model="base"),
        base_model="a",
        parameters={"t": 0.5},
    )
    first, second = stack.sections(8)
    assert (first.index, first.base_model, first.sources, first.num_layers) == (0, "a", ("b",), 2)
    assert first.starts == {"a": 0, "b": 3}
    assert (second.base_model, second.sources) == ("base", ("b",))
    assert second.starts == {"base": 1, "b": 4}
    assert stack.models == {"a", "b"}


def test_a_recipe_without_slices_is_one_section() -> None:
    """Of all layers; the base_model takes part in them."""
    (section,) = Recipe(method="ties", sources={"b": {"weight": 1}, "a": {"weight": 1}}).sections(8)
    assert (section.index, section.sources, section.num_layers) == (None, ("a", "b"), 8)
    assert section.starts == {"a": 0, "b": 0, "base": 0}


def test_an_empty_base_model_is_no_way_to_leave_it_out() -> None:
    """Nothing has that name; null and no key at all fall back to the recipe's."""
    with pytest.raises(RecipeError, match="at least 1 character"):
        recipe("ties", {"a": {"weight": 1}}, part(("a", 0, 1), base_model=""))


def test_a_method_that_takes_its_base_as_a_source_has_no_base_model() -> None:
    """For linear the base is listed or it does not take part."""
    both = {"a": {"weight": 1}, "base": {"weight": 1}}
    one = recipe("linear", both, part(("a", 0, 1), ("base", 0, 1)))
    (section,) = one.sections(1)
    assert (section.base_model, section.sources) == (None, ("a", "base"))
    assert Recipe(method="linear", sources={"a": {"weight": 1}}).models == {"a"}


def test_a_base_model_that_is_not_listed_takes_part_with_the_same_layers() -> None:
    """A slice may leave it out where all sources are of the same layers."""
    (section,) = recipe("ties", {"a": {"weight": 1}}, part(("a", 2, 4))).sections(8)
    assert section.starts == {"a": 2, "base": 2}


def test_a_dumped_recipe_of_slices_is_the_recipe() -> None:
    """JSON and back gives an equal recipe."""
    one = recipe("passthrough", ["a"], part(("a", 0, 2, {"scale": 0.5})), part(("a", 1, 2)))
    assert Recipe.model_validate_json(one.model_dump_json()) == one
    assert Recipe.model_validate(one.model_dump()) == one


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        ([], "slices: are none; name some"),
        ([part()], "slices[0].sources: are none; name a model"),
        ("x", "slices: Input should be a valid tuple"),
        ([{}], "slices.0.sources: Field required"),
        ([part(("a", 0, 2), colour=1)], "slices.0.colour: Extra inputs are not permitted"),
        ([part(("a", -1, 2))], "slices.0.sources.0.layer_range.0: Input should be greater than"),
        ([part(("a", 2, 2))], "slices[0].sources[0].layer_range: [2, 2] is empty"),
        ([part(("a", 0, 2, {"weight": "x"}))], "slices[0].sources[0].parameters.weight: must be a"),
        ([part(("a", 0, 2, {"colour": 1}))], "slices[0].sources[0].parameters.colour: ties has no"),
        (
            [part(("a", 0, 2, {"lambda": 1}))],
            "slices[0].sources[0].parameters.lambda: belongs to the whole recipe",
        ),
        ([part(("a", 0, 2), parameters={"lambda": "x"})], "slices[0].parameters.lambda: must be a"),
        ([part(("a", 0, 2), ("c", 0, 2))], "slices[0].sources[1].model: 'c' is not one of the"),
        ([part(("a", 0, 2), ("a", 2, 4))], "slices[0].sources: 'a' is in it twice"),
        (
            [part(("a", 0, 2), ("base", 0, 3))],
            "slices[0].sources: must be of equally many layers, got a [0, 2], base [0, 3]",
        ),
        (
            [part(("a", 0, 2), ("base", 0, 2, {"weight": 1}))],
            "slices[0].sources[1].parameters: 'base' is the base_model, which has none",
        ),
    ],
)
def test_every_mistake_is_named(slices: Any, reason: str) -> None:
    """One mistake gives one reason that says where it stands."""
    data = {"method": "ties", "sources": {"a": {}}, "slices": slices, "parameters": {"weight": 1}}
    with pytest.raises(RecipeError) as error:
        Recipe.model_validate(data)
    found = [r for r in error.value.reasons if "is in no slice" not in r]
    assert len(found) == 1, found
    assert found[0].startswith(reason)


def test_ranges_that_differ_need_the_base_model_among_them() -> None:
    """Which of its layers take part cannot be known otherwise."""
    sources = {"a": {"weight": 1}, "b": {"weight": 1}}
    with pytest.raises(RecipeError, match="base_model 'base' is not among them"):
        recipe("ties", sources, part(("a", 0, 2), ("b", 1, 3)))
    recipe("ties", sources, part(("a", 0, 2), ("b", 1, 3), ("base", 0, 2)))
    recipe("linear", sources, part(("a", 0, 2), ("b", 1, 3)))


def test_a_required_parameter_may_stand_on_any_level() -> None:
    """In the slice's source, the source, the slice or the recipe; missing on all, it is named."""
    bare, one = part(("a", 0, 2)), {"weight": 1}
    recipe("ties", {"a": one}, bare)
    recipe("ties", ["a"], part(("a", 0, 2, one)))
    recipe("ties", ["a"], {**bare, "parameters": one})
    recipe("ties", ["a"], bare, parameters=one)
    with pytest.raises(RecipeError, match=r"slices\[1\]\.sources\[0\]\.weight: is missing"):
        recipe("ties", ["a"], part(("a", 0, 2, one)), bare)
    with pytest.raises(RecipeError, match=r"slices\[1\]\.parameters\.t: is missing"):
        recipe("slerp", ["a"], {**bare, "parameters": {"t": 1}}, bare)


def test_a_source_that_is_in_no_slice_is_a_mistake() -> None:
    """It would not be merged, and its weight would have no effect."""
    with pytest.raises(RecipeError, match=r"sources\.b: is in no slice"):
        recipe("passthrough", ["a", "b"], part(("a", 0, 2)))
