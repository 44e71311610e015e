"""Make explanations of the sources of blends and variants."""

from collections.abc import Iterator, Mapping

from merging.adapter import Adapter
from merging.base import Base
from merging.blending import Array
from merging.explanation import (
    Group,
    SourceExplanation,
    Values,
    group_coefficients,
    group_values,
)
from merging.models import Source
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
        kind="base" if source is None else "adapter" if factors else "checkpoint",
        digest=base.digest if source is None else source.digest,
        num_bytes=source.num_bytes if isinstance(source, Adapter) else 0,
        num_modules=sum(n * len(g.modules) for n, g in zip(layers, groups, strict=True)),
        ranks=tuple(sorted({factor.rank for factor in factors.values()})),
        coefficient=coefficient,
        weight=weight,
        groups=groups,
    )


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
