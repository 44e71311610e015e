"""The shares of a variant's sources: one scalar each, as if its method were a weighted sum."""

from collections.abc import Mapping, Sequence
from typing import Final

from merging.blending import Array
from merging.layout import Layout
from merging.low_rank import LowRankPlan
from merging.methods.method import Method, Values
from merging.models import Models
from merging.recipe import BASE
from merging.resolution import Resolved
from merging.variant import VariantPlan

Planned = VariantPlan | LowRankPlan
"""A merge tensor by tensor, of a method that is more than a weighted sum."""

WEIGHT: Final = "weight"
"""The parameter of sources that says how much of each is taken."""


def shares(method: Method, values: Values) -> tuple[float, ...]:
    """The coefficient of each source of one tensor: its weight, times lambda, divided by the sum of
    the weights where the method does so. Empty if the method is not linear and has no weights.

    It is exact for linear methods; for others it is what they do where all sources agree.
    """
    if method.kind == "linear":
        return tuple(float(c) for c in method.combine(values).coefficients)
    weights = values.get(WEIGHT)
    if not isinstance(weights, tuple):
        return ()
    numbers = [float(weight) for weight in weights]
    normalize = values.get("normalize", values.get("normalize_weights", True))
    total = sum(sorted(numbers)) if normalize else 1.0
    factor = float(values.get("lambda", 1.0)) / (total if abs(total) >= 1e-8 else 1.0)  # type: ignore[arg-type]
    return tuple(factor * number for number in numbers)


def mean_shares(planned: Planned) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The means of the sources' shares and of their own weights, over the tensors that they touch;
    both are empty for a method without weights.
    """
    known: dict[int, tuple[float, ...]] = {}
    found: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    for tensor in planned.tensors:
        if id(tensor.values) not in known:  # shared by most tensors
            known[id(tensor.values)] = shares(planned.method, tensor.values)
        own = tensor.values.get(WEIGHT)
        for index, source in planned.touching(tensor):
            if known[id(tensor.values)]:
                found.setdefault(source, []).append(known[id(tensor.values)][index])
            if isinstance(own, tuple):
                weights.setdefault(source, []).append(float(own[index]))
    return {n: mean(v) for n, v in found.items()}, {n: mean(v) for n, v in weights.items()}


def blend_means(
    rows: Mapping[str, Array], layout: Layout, tensors: Sequence[Resolved], models: Models
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The same of a blend, over the linear layers that a source touches; the base touches all."""
    index, weights = models.base.module_index, {}
    modules = {name: list(adapter.factors) for name, adapter in models.adapters.items()}
    modules[BASE] = list(index)
    places = {place.name: own for place, own in zip(layout.places, tensors, strict=True)}
    for name in rows:
        own = [places[f"{module}.weight"] for module in modules[name]]
        own = [o for o in own if WEIGHT in o.values and name in o.section.sources]
        if own:
            weights[name] = mean([float(o.of_source(name, WEIGHT)) for o in own])
    means = {n: mean([float(row[index[m]]) for m in modules[n]]) for n, row in rows.items()}
    return means, weights


def mean(values: Sequence[float]) -> float:
    """The mean; of equal values it is that value, without the rounding of a sum."""
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)
