"""Make explanations of the sources of blends and variants."""

from collections.abc import Iterator, Mapping

from merging.adapter import Adapter
from merging.base import Base
from merging.blending import Array
from merging.explanation import (
    Delta,
    Group,
    SourceExplanation,
    SourceKind,
    Values,
    group_coefficients,
    group_values,
)
from merging.models import Source
from merging.overlay_weights import OverlayWeights
from merging.shares import Planned, shares


def explain_source(
    name: str,
    source: Source | None,
    base: Base,
    groups: tuple[Group, ...],
    coefficient: float | None,
    weight: float | None,
) -> SourceExplanation:
    """Explain one source, of which `groups` is what it resolves to; None is the resident base."""
    factors = source.factors if isinstance(source, Adapter) else {}
    layers = [1 if g.layers is None else g.layers[1] - g.layers[0] + 1 for g in groups]
    return SourceExplanation(
        name=name,
        kind=_kind(source),
        digest=base.digest if source is None else source.digest,
        num_bytes=source.num_bytes if isinstance(source, Adapter | OverlayWeights) else 0,
        num_modules=sum(n * len(g.modules) for n, g in zip(layers, groups, strict=True)),
        ranks=tuple(sorted({factor.rank for factor in factors.values()})),
        coefficient=coefficient,
        weight=weight,
        groups=groups,
        delta=_delta(source),
        reasons=source.reasons if isinstance(source, OverlayWeights) else (),
    )


def _delta(source: Source | None) -> Delta | None:
    if source is None:
        return None
    return "low_rank" if isinstance(source, Adapter) else "dense"


def _kind(source: Source | None) -> SourceKind:
    if source is None:
        return "base"
    return "adapter" if isinstance(source, Adapter | OverlayWeights) else "checkpoint"


def blend_groups(source: Source | None, base: Base, row: Array) -> tuple[Group, ...]:
    """The coefficient of every linear layer that a source touches; the base touches all."""
    touched = source.factors if isinstance(source, Adapter) else base.linears
    columns = base.module_index.items()
    return group_coefficients({m: float(row[column]) for m, column in columns if m in touched})


def planned_groups(planned: Planned, name: str) -> tuple[Group, ...]:
    """What a source's parameters resolve to for every merged tensor that it touches."""
    return group_values(dict(_source_values(planned, name)))


def _source_values(
    planned: Planned, name: str
) -> Iterator[tuple[str, tuple[float | None, Values]]]:
    known: dict[int, tuple[float, ...]] = {}
    for tensor in planned.tensors:
        if id(tensor.values) not in known:  # shared by most tensors
            known[id(tensor.values)] = shares(planned.method, tensor.values)
        found = known[id(tensor.values)]
        for index, source in planned.touching(tensor):
            if source == name:
                items = tensor.values.items()
                own = tuple((n, v[index]) for n, v in items if isinstance(v, tuple))
                yield tensor.name, (found[index] if found else None, own)


def shared_groups(planned: Planned) -> tuple[Group, ...]:
    """What the recipe's own parameters resolve to for every merged tensor."""
    resolved: Mapping[str, tuple[float | None, Values]] = {
        tensor.name: (
            None,
            tuple((n, v) for n, v in tensor.values.items() if not isinstance(v, tuple)),
        )
        for tensor in planned.tensors
    }
    return group_values(resolved)
