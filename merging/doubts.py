"""What of a plan is likely to break the model: told from its figures, before any weight is read.

Nothing of it is refused: a method may be pushed on purpose. The bounds are wide, so that what is
done every day (two or three adapters at weight 1) is not doubted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from merging.methods.method import Method
from merging.recipe import BASE
from merging.shares import Planned, mean
from merging.variant import TensorPlan

if TYPE_CHECKING:
    from merging.plan import Plan

MAX_COEFFICIENT: Final = 2.0
MAX_SUM: Final = 3.0
"""A source that counts more often than so, or all together."""

MAX_SCALING: Final = 0.15
"""How far the mean factor on the base itself may be from 1."""

MIN_DENSITY: Final = 0.01
"""Below, next to nothing is left of a source."""


def doubts(plan: "Plan") -> tuple[str, ...]:
    """One sentence for each reason why a merge with this plan may write gibberish."""
    found = [weight_doubt(_coefficients(plan)), _scale_doubt(plan), _density_doubt(plan)]
    return tuple(doubt for doubt in found if doubt is not None)


def weight_doubt(coefficients: Mapping[str, float]) -> str | None:
    """The doubt that sources count too often. `coefficients` are theirs; signs do not matter."""
    own = {name: abs(c) for name, c in coefficients.items() if name != BASE}
    total = sum(own.values())
    if total <= MAX_SUM and max(own.values(), default=0.0) <= MAX_COEFFICIENT:
        return None
    each = ", ".join(f"{name} {coefficients[name]:.4g}" for name in sorted(own))
    return (
        f"its sources count {total:.4g} times in all ({each}): far above 1 is the usual cause of "
        "gibberish; lower the weights, or lambda"
    )


def _coefficients(plan: "Plan") -> Mapping[str, float]:
    """How often each source counts, as a mean over the tensors that it touches."""
    if not plan.coefficients:
        return plan.members
    columns = plan.base.module_index
    found = {}
    for name, adapter in plan.adapters.items():
        row = np.abs(plan.coefficients[name][[columns[module] for module in adapter.factors]])
        mean_size = float(row.mean()) if row.size else 0.0
        found[name] = -mean_size if plan.members.get(name, 0.0) < 0 else mean_size
    return found


def _scale_doubt(plan: "Plan") -> str | None:
    scale = _base_scale(plan)
    if abs(scale - 1) <= MAX_SCALING:
        return None
    return (
        f"the base itself is multiplied by {scale:.4g}, its norms and embeddings too: the weights "
        "have to add up to 1 (normalize: true sees to that), or use task_arithmetic"
    )


def _base_scale(plan: "Plan") -> float:
    """The mean factor on the base's own tensors, of those that a merge writes or blends."""
    if plan.blend.base_scales is not None:
        return float(plan.blend.base_scales.mean())
    if plan.variant is None or plan.variant.method.kind != "linear":
        return 1.0
    return mean(list(_scales(plan.variant.method, plan.variant.tensors)) or [1.0])


def _scales(method: Method, tensors: Sequence[TensorPlan]) -> Iterator[float]:
    known: dict[int, float] = {}
    for tensor in tensors:
        if id(tensor.values) not in known:  # shared by most tensors
            scale = method.combine(tensor.values).base_scale
            known[id(tensor.values)] = scale if isinstance(scale, float | int) else 1.0
        yield known[id(tensor.values)]


def _density_doubt(plan: "Plan") -> str | None:
    planned = plan.variant or plan.low_rank
    if planned is None:
        return None
    found = _densities(planned)
    sparse = {name: value for name, value in found.items() if value < MIN_DENSITY}
    if not sparse:
        return None
    each = ", ".join(f"{name} {value:.3g}" for name, value in sorted(sparse.items()))
    return (
        f"a density below {MIN_DENSITY:g} ({each}) drops nearly all of a source: what is left is "
        "the base, or where it is rescaled noise"
    )


def _densities(planned: Planned) -> Mapping[str, float]:
    """The mean density of each source, of a method that has one."""
    parameter = planned.method.parameter("density")
    if parameter is None or parameter.doc.inert:
        return {}
    found: dict[str, list[float]] = {}
    for tensor in planned.tensors:
        own = tensor.values.get("density")
        for index, source in planned.touching(tensor):
            if isinstance(own, tuple):
                found.setdefault(source, []).append(float(own[index]))
    return {name: mean(values) for name, values in found.items()}
