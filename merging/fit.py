"""Whether the models of a recipe have the tensors that its layout asks of them."""

from collections.abc import Iterator

from merging.adapter import Adapter
from merging.base import locate
from merging.layout import Layout, Place, is_derived
from merging.models import Models
from merging.source import Weights
from merging.wording import grouped, shown


def fit_problems(layout: Layout, models: Models) -> Iterator[str]:
    """Every reason, by tensor name, why tensors of checkpoints and adapters do not fit."""
    for name, adapter in models.adapters.items():
        if unknown := [m for m in adapter.factors if m not in models.base.linears]:
            yield f"sources.{name}: the base has no linear layer named {shown(unknown)}"
        elif layout.is_plain and (left := _left_out(adapter, layout)):
            yield f"sources.{name}: it changes {shown(left)}, and the merge has no such tensor"
    if models.resident is None:
        return
    if absent := [place.like for place in layout.places if place.like not in models.shapes]:
        yield f"base: its files have no tensor named {shown(absent)}"
        return
    for name, weights in models.checkpoints.items():
        problems = list(_problems(name, weights, layout, models))
        yield from (f"sources.{name}: {problem}" for problem in grouped(problems))
        if unexpected := _unexpected(weights, models, layout.is_plain):
            yield f"sources.{name}: has tensors that the base has not: {shown(unexpected)}"


def _left_out(adapter: Adapter, layout: Layout) -> list[str]:
    """What an adapter changes and the merged model lacks: it would be dropped in silence."""
    made = {place.name for place in layout.places}
    return [name for module in adapter.factors if (name := f"{module}.weight") not in made]


def _problems(
    name: str, weights: Weights, layout: Layout, models: Models
) -> Iterator[tuple[str, str]]:
    """What is wrong with the tensors that are used of a checkpoint: (tensor, problem)."""
    for place in layout.places:
        for tensor in _used(name, place):
            own = models.tensor_of(name, tensor)
            shape, expected = weights.shapes.get(own), models.shapes[place.like]
            if shape is None:
                yield own, "is missing"
            elif shape != expected:
                yield own, _shape_problem(own, shape, expected)


def _used(name: str, place: Place) -> Iterator[str]:
    section = place.section
    if section.base_model == name and place.reference is not None:
        yield place.reference
    if name in section.sources:
        yield place.inputs[section.sources.index(name)]


def _shape_problem(tensor: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if locate(tensor) is None and len(shape) == len(expected) == 2 and shape[1] == expected[1]:
        return (
            f"has {shape[0]} rows, and the base's has {expected[0]}: it has another vocabulary; "
            "models are merged only over one vocabulary"
        )
    return f"is {list(shape)}, and the base's is {list(expected)}"


def _unexpected(weights: Weights, models: Models, is_plain: bool) -> list[str]:
    """Tensors of a kind that the base has in no layer, and in no layer of this number if layers
    are not stacked. A head beside the embedding that it equals was looked at on registration.
    """
    known = {*models.shapes, *(head for head in models.tied)}
    kinds = {(place.root, place.kind) for name in known if (place := locate(name)) is not None}
    found = []
    for name, shape in weights.shapes.items():
        if name in known or is_derived(name, shape):
            continue
        place = locate(name)
        if place is None or is_plain or (place.root, place.kind) not in kinds:
            found.append(name)
    return found
