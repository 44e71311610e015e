"""What explain shows of a plan: per source, the coefficient of every group of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from merging.base import split_layer


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors with one coefficient: `modules` in every layer from `layers[0]` to `layers[1]`.

    `layers` is None for modules outside the layers.
    """

    layers: tuple[int, int] | None
    modules: tuple[str, ...]
    coefficient: float


@dataclass(frozen=True, slots=True)
class SourceExplanation:
    """One source: `coefficient` is the mean over its modules, `ranks` the distinct ones.

    `weight` is the mean of what the recipe gives it, before the method combines the sources; None
    if the method has no weights.
    """

    name: str
    kind: Literal["adapter", "base"]
    digest: str
    num_bytes: int
    num_modules: int
    ranks: tuple[int, ...]
    coefficient: float
    weight: float | None
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan in plain values, which `dataclasses.asdict` turns into JSON.

    `num_bytes` is what its adapters take in memory, `max_rank` the largest sum of their ranks on
    one module: what a row of the plan adds to a step. `build_seconds`: how long planning took.
    """

    path: str
    reason: str
    digest: str
    num_bytes: int
    max_rank: int
    build_seconds: float
    sources: tuple[SourceExplanation, ...]
    warnings: tuple[str, ...]


def group_coefficients(coefficients: Mapping[str, float]) -> tuple[Group, ...]:
    """Group modules by coefficient, and runs of layers that look the same; the head comes last.

    `coefficients` is by module path.
    """
    kinds: dict[tuple[int | None, float], list[str]] = {}
    for module, coefficient in coefficients.items():
        layer, kind = split_layer(module)
        kinds.setdefault((layer, coefficient), []).append(kind)
    outside = [
        Group(None, tuple(names), coefficient)
        for (layer, coefficient), names in kinds.items()
        if layer is None
    ]
    layers = {(layer, c): tuple(names) for (layer, c), names in kinds.items() if layer is not None}
    return (*_runs(layers), *outside)


def _runs(layers: Mapping[tuple[int, float], tuple[str, ...]]) -> list[Group]:
    """Join what is equal in one layer and the next."""
    runs: list[Group] = []
    open_runs: dict[tuple[tuple[str, ...], float], int] = {}  # index of the last run of its like
    for (layer, coefficient), names in sorted(layers.items(), key=lambda item: item[0][0]):
        index = open_runs.get((names, coefficient))
        last = runs[index].layers if index is not None else None
        if index is not None and last is not None and last[1] == layer - 1:
            runs[index] = Group((last[0], layer), names, coefficient)
        else:
            open_runs[names, coefficient] = len(runs)
            runs.append(Group((layer, layer), names, coefficient))
    return runs
