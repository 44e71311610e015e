"""Layouts that are remembered are those that would be made anew."""

from typing import Any

import pytest

from merging.layout import Layouts, lay_out, tensor_names
from merging.recipe import Recipe
from merging.section import Section
from tests.merging.tiny import flat_base

BASE = flat_base(num_layers=3)
DIGESTS = {"a": "sha256:2", "b": "sha256:1"}


def sections(method: str = "task_arithmetic", **fields: Any) -> tuple[Section, ...]:
    sources = fields.pop("sources", {"a": {"weight": 0.5}, "b": {"weight": 1}})
    recipe = Recipe.model_validate({"method": method, "sources": sources, **fields})
    return recipe.sections(BASE.num_layers, DIGESTS)


def stack(*ranges: tuple[int, int]) -> list[dict[str, Any]]:
    sources = [
        [{"model": "a", "layer_range": own}, {"model": "b", "layer_range": own}] for own in ranges
    ]
    return [{"sources": own} for own in sources]


def test_an_edit_of_weights_keeps_the_layout() -> None:
    """Weights do not decide which tensors a merge is made of: the layout is not made again."""
    layouts = Layouts(BASE, None)
    one = layouts.of(sections())
    assert layouts.of(sections(sources={"a": {"weight": [0, 1]}, "b": {"weight": -1}})) is one


@pytest.mark.parametrize(
    "other",
    [
        sections(sources={"a": {"weight": 1}}),
        sections(base_model="a", sources={"b": {"weight": 1}}),
        sections("linear"),
        sections(slices=stack((0, 2), (2, 3))),
        sections(slices=stack((0, 2), (1, 3))),
        sections(slices=stack((1, 3), (0, 2))),
    ],
)
def test_other_sections_have_their_own_layout(other: tuple[Section, ...]) -> None:
    """Other sources, another base_model, or other slices: what is remembered is not used."""
    layouts, names = Layouts(BASE, None), tensor_names(BASE, None)
    for asked in (sections(), other, sections(slices=stack((0, 2), (1, 3))), other, sections()):
        assert layouts.of(asked) == lay_out(asked, BASE, names)
