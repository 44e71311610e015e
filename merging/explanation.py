"""What explain shows of a plan: per source, what every group of its tensors resolves to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from merging.base import split_layer
from merging.setting import Scalar

Values = tuple[tuple[str, Scalar], ...]
"""Parameters and their values."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors with one coefficient: `modules` in every layer from `layers[0]` to `layers[1]`.

    `layers` is None for modules outside the layers. Of a blend `modules` are linear layers; of a
    variant they are tensors, and `values` are the parameters that they resolve to. `coefficient` is
    None where the method makes more of the source than a multiple.
    """

    layers: tuple[int, int] | None
    modules: tuple[str, ...]
    coefficient: float | None
    values: Mapping[str, Scalar] = field(default_factory=dict)


SourceKind = Literal["adapter", "checkpoint", "base"]
Delta = Literal["low_rank", "dense"]


@dataclass(frozen=True, slots=True)
class SourceExplanation:
    """One source: `coefficient` is the mean over its modules, `ranks` the distinct ones.

    `weight` is the mean of what the recipe gives it, before the method combines the sources; None
    if the method has no weights. `num_modules` counts what it touches: linear layers of a blend,
    tensors of a variant. `delta`: two factors for each layer, or whole tensors; `reasons`: why an
    adapter's is dense.
    """

    name: str
    kind: SourceKind
    digest: str
    num_bytes: int
    num_modules: int
    ranks: tuple[int, ...]
    coefficient: float | None
    weight: float | None
    groups: tuple[Group, ...]
    delta: Delta | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan in plain values, which `dataclasses.asdict` turns into JSON.

    `num_bytes` is what it takes in memory beside the base: its adapters, or the weights written.
    `max_rank` is the largest sum of ranks on one module: what a row of a blend adds to a step.
    `build_seconds`: how long planning took. `parameters`: what the recipe's own parameters resolve
    to for groups of merged tensors; empty for a blend by coefficients alone. `num_layers`: of the
    merged model.
    """

    path: str
    reason: str
    digest: str
    num_bytes: int
    max_rank: int
    build_seconds: float
    sources: tuple[SourceExplanation, ...]
    warnings: tuple[str, ...]
    parameters: tuple[Group, ...] = ()
    num_layers: int = 0
    num_written: int = 0


def group_coefficients(coefficients: Mapping[str, float]) -> tuple[Group, ...]:
    """Group modules by coefficient, and runs of layers that look the same; the head comes last.

    `coefficients` is by module path.
    """
    return group_values({module: (c, ()) for module, c in coefficients.items()})


def group_values(resolved: Mapping[str, tuple[float | None, Values]]) -> tuple[Group, ...]:
    """Group tensors by coefficient and values, as `group_coefficients` does."""
    kinds: dict[tuple[int | None, tuple[float | None, Values]], list[str]] = {}
    for name, value in resolved.items():
        layer, kind = split_layer(name)
        kinds.setdefault((layer, value), []).append(kind)
    outside = [
        Group(None, tuple(names), coefficient, dict(values))
        for (layer, (coefficient, values)), names in kinds.items()
        if layer is None
    ]
    layers = {(layer, v): tuple(names) for (layer, v), names in kinds.items() if layer is not None}
    return (*_runs(layers), *outside)


def _runs(
    layers: Mapping[tuple[int, tuple[float | None, Values]], tuple[str, ...]],
) -> list[Group]:
    """Join what is equal in one layer and the next."""
    runs: list[Group] = []
    open_runs: dict[object, int] = {}  # index of the last run of its like
    for (layer, value), names in sorted(layers.items(), key=lambda item: item[0][0]):
        index = open_runs.get((names, value))
        last = runs[index].layers if index is not None else None
        if index is not None and last is not None and last[1] == layer - 1:
            runs[index] = Group((last[0], layer), names, value[0], dict(value[1]))
        else:
            open_runs[names, value] = len(runs)
            runs.append(Group((layer, layer), names, value[0], dict(value[1])))
    return runs
