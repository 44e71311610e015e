"""Compile a recipe to a plan of the tensors that must be written; all others are the base's own."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from merging.adapter_weights import StackedWeights
from merging.blending import untouched_scale
from merging.layout import Layout, Place
from merging.methods.method import Method
from merging.models import Models
from merging.recipe import BASE
from merging.resolution import Resolved
from merging.source import Weights
from merging.variant import Ingredient, TensorPlan, VariantPlan

ITEM_SIZES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
SAME = 1e-6
"""How near 1 a factor is on tensors that stay as they are: methods guard norms by 1e-8 or so."""


def make_variant(
    method: Method,
    layout: Layout,
    tensors: Sequence[Resolved],
    models: Models,
    *,
    digest: str,
    dtype: str,
    seed: int,
) -> VariantPlan:
    """Say of every tensor of the merged model what it is made of.

    A tensor that every model has from the resident base is shared, unless the method scales it. So
    are all tensors of layers of the base that are only stacked, and buffers of whole numbers, which
    are no weights. A head that is tied to the
    embedding stays so, unless an adapter is on it.
    """
    assert models.resident is not None, "the base's files are not mapped"
    base, references = _base(layout, models)
    scales = {id(own): untouched_scale(method, own) for own in {id(t): t for t in tensors}.values()}
    planned: list[TensorPlan] = []
    shared: dict[str, str] = {}
    for place, own in zip(layout.places, tensors, strict=True):
        used = list(_used(place))
        if place.like in models.tied and not any(models.changes_head(*pair) for pair in used):
            continue
        names = {tensor for _, tensor in used}
        is_own = len(names) == 1 and not any(models.changes(*pair) for pair in used)
        if is_own and abs(scales[id(own)] - 1) <= SAME:
            shared[place.name] = names.pop()
        elif not _is_float(models, place.like):
            shared[place.name] = place.like
        else:
            planned.append(_tensor(place, own, models, references))
    num_items = sum(prod(tensor.shape) for tensor in planned)
    return VariantPlan(
        digest=digest,
        method=method,
        resident=models.resident,
        base=base,
        sources={n: models.deltas(n, _on_base(layout, n)) for n in _sources(layout)},
        tensors=tuple(planned),
        shared=shared,
        layers=layout.layers,
        dtype=dtype,
        seed=seed,
        num_bytes=num_items * ITEM_SIZES[dtype],
    )


def _is_float(models: Models, name: str) -> bool:
    assert models.resident is not None
    return models.resident.tensor(models.tied.get(name, name)).is_floating_point()


def _used(place: Place) -> Iterator[tuple[str, str]]:
    """The models that a tensor is made of, and their tensors."""
    section = place.section
    if section.base_model is not None and place.reference is not None:
        yield section.base_model, place.reference
    yield from zip(section.sources, place.inputs, strict=True)


def _tensor(
    place: Place, own: Resolved, models: Models, references: Mapping[str, str] | None
) -> TensorPlan:
    base = None
    if place.section.base_model is not None and place.reference is not None:
        base = models.tensor_of(place.section.base_model, place.reference)
        if references is not None:
            base = references[place.name]
    pairs = zip(place.section.sources, place.inputs, strict=True)
    ingredients = tuple(Ingredient(n, models.tensor_of(n, tensor)) for n, tensor in pairs)
    return TensorPlan(place.name, models.shapes[place.like], base, ingredients, own.values)


def _base(layout: Layout, models: Models) -> tuple[Weights, Mapping[str, str] | None]:
    """What deltas are relative to. Where slices have different base_models it is a stack of them,
    whose tensors have the names of the result's.
    """
    assert models.resident is not None
    names = {place.section.base_model for place in layout.places} - {None}
    if len(names) <= 1:
        return (models.weights(str(names.pop())) if names else models.resident), None
    weights = {str(name): models.weights(str(name)) for name in names}
    parts = {
        place.name: (weights[model], models.tensor_of(model, place.reference))
        for place in layout.places
        if (model := place.section.base_model) is not None and place.reference is not None
    }
    return StackedWeights(parts), {name: name for name in parts}


def _sources(layout: Layout) -> list[str]:
    return sorted({name for place in layout.places for name in place.section.sources})


def _on_base(layout: Layout, name: str) -> bool:
    """Whether a source's deltas are relative to the resident base's tensors of the same layers
    wherever it is used.
    """
    sections = {id(place.section): place.section for place in layout.places}.values()
    return all(
        section.base_model == BASE and section.starts[BASE] == section.starts[name]
        for section in sections
        if name in section.sources
    )
