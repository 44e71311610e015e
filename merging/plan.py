"""A plan: what a recipe becomes on this base with these sources, and why."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from merging.adapter import Adapter
from merging.base import Base
from merging.blend import Blend
from merging.digest import json_digest
from merging.errors import PlanError
from merging.explanation import Explanation, SourceExplanation, group_coefficients
from merging.methods import METHODS
from merging.recipe import BASE, Recipe
from merging.resolution import FLOAT32_MAX, resolve_recipe
from merging.wording import shown

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A recipe compiled for a base.

    `path` says how it is served and `reason` why. `adapters` has the recipe's sources but the base;
    `coefficients` what it resolves to for each source: float64 [num_modules], columns in the order
    of `base.linears`. `members` has their means over the modules that the source touches, and
    `weights` the means of the sources' weights, as they were before the method combined them.
    """

    path: Literal["base", "blend"]
    reason: str
    blend: Blend
    base: Base
    adapters: Mapping[str, Adapter]
    coefficients: Mapping[str, Array]
    members: Mapping[str, float]
    weights: Mapping[str, float]
    build_seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    def explain(self) -> Explanation:
        """The plan in plain values."""
        active = self.blend.adapters
        return Explanation(
            path=self.path,
            reason=self.reason,
            digest=self.blend.digest,
            num_bytes=sum(adapter.num_bytes for adapter in active),
            max_rank=max((_total_rank(active, module) for module in self.base.linears), default=0),
            build_seconds=self.build_seconds,
            sources=tuple(self._explain_source(name) for name in sorted(self.coefficients)),
            warnings=self.warnings,
        )

    def _explain_source(self, name: str) -> SourceExplanation:
        adapter, row = self.adapters.get(name), self.coefficients[name]
        factors = adapter.factors if adapter is not None else {}
        modules = self.base.linears if adapter is None else factors
        touched = {m: float(row[i]) for m, i in self.base.module_index.items() if m in modules}
        return SourceExplanation(
            name=name,
            kind="base" if adapter is None else "adapter",
            digest=self.base.digest if adapter is None else adapter.digest,
            num_bytes=0 if adapter is None else adapter.num_bytes,
            num_modules=len(touched),
            ranks=tuple(sorted({factor.rank for factor in factors.values()})),
            coefficient=self.members[name],
            weight=self.weights.get(name),
            groups=group_coefficients(touched),
        )


def _total_rank(adapters: tuple[Adapter, ...], module: str) -> int:
    return sum(a.factors[module].rank for a in adapters if module in a.factors)


def base_plan(base: Base) -> Plan:
    """The plan of the base alone: an empty blend."""
    digest = json_digest({"base": base.digest, "dtype": base.dtype})
    blend = Blend(digest, (), torch.zeros(0, len(base.linears)))
    return Plan("base", "the base as it is", blend, base, {}, {}, {}, {})


def plan(
    recipe: Recipe,
    adapters: Mapping[str, Adapter],
    base: Base,
    unusable: Mapping[str, str] | None = None,
) -> Plan:
    """Compile a recipe for a base. `adapters` has its sources by name, and may have others.

    `unusable` says of registered sources without an adapter why they have none. Raises PlanError
    with every reason why the recipe cannot be built.
    """
    start = perf_counter()
    resolution = resolve_recipe(recipe, base)
    reasons = [*_unavailable(recipe, base), *source_reasons(recipe.sources, adapters, unusable)]
    reasons += _foreign(recipe, adapters, base)
    reasons += resolution.reasons
    if reasons:
        raise PlanError(reasons)
    used = {name: adapters[name] for name in recipe.sources if name != BASE}
    rows = resolution.coefficients
    columns = {name: _columns(used.get(name), base) for name in rows}
    digest = recipe.digest({name: adapter.digest for name, adapter in used.items()}, base)
    return Plan(
        path="blend",
        reason=f"{recipe.method} of adapters is a sum of low-rank deltas: no weights are written",
        blend=_blend(digest, used, rows, base),
        base=base,
        adapters=used,
        coefficients=rows,
        members={name: _mean(row[columns[name]]) for name, row in rows.items()},
        weights={name: _mean(row[columns[name]]) for name, row in resolution.weights.items()},
        build_seconds=perf_counter() - start,
        warnings=(*resolution.warnings, *_inert(recipe), *_warnings(used)),
    )


def source_reasons(
    names: Iterable[str],
    adapters: Mapping[str, Adapter],
    unusable: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Why sources cannot be used, one reason for each that has no adapter."""
    unusable = unusable or {}
    for name in names:
        if name in unusable:
            yield f"sources.{name}: cannot be used: {unusable[name]}"
        elif name != BASE and name not in adapters:
            known = shown(sorted({*adapters, *unusable}), limit=20) or "none"
            yield f"sources.{name}: is not a registered source; registered are: {known}"


def _unavailable(recipe: Recipe, base: Base) -> Iterator[str]:
    if recipe.slices is not None:
        yield "slices: stacking layers is not available in this release; leave slices out"
    if recipe.dtype not in (None, base.dtype):
        yield f"dtype: a blend computes in the base's {base.dtype}, not in {recipe.dtype}"


def _foreign(recipe: Recipe, adapters: Mapping[str, Adapter], base: Base) -> Iterator[str]:
    for name in sorted(recipe.sources.keys() & adapters.keys()):
        if unknown := [m for m in adapters[name].factors if m not in base.linears]:
            yield f"sources.{name}: the base has no linear layer named {shown(unknown)}"


def _blend(
    digest: str, adapters: Mapping[str, Adapter], rows: Mapping[str, Array], base: Base
) -> Blend:
    """Add up the names of one content, and leave out the adapters that come to nothing.

    Raises PlanError if a sum is beyond float32.
    """
    by_digest: dict[str, list[str]] = {}
    for name, adapter in adapters.items():
        by_digest.setdefault(adapter.digest, []).append(name)
    active, totals = [], []
    for _, names in sorted(by_digest.items()):
        # Sorted, so that the rounding of the sum does not depend on names.
        total = np.sort([rows[name] for name in names], axis=0).sum(axis=0)
        if not (abs(total) <= FLOAT32_MAX).all():
            raise PlanError(
                f"sources {' and '.join(names)} have the same content, and the sum of their "
                "coefficients is not a finite float32"
            )
        if total[_columns(adapters[names[0]], base)].any():
            active.append(adapters[names[0]])
            totals.append(total)
    shape = (len(active), len(base.linears))
    coefficients = torch.from_numpy(np.array(totals, dtype=np.float64).reshape(shape))
    return Blend(digest, tuple(active), coefficients.to(torch.float32))


def _columns(adapter: Adapter | None, base: Base) -> list[int]:
    """Columns of the modules that a source touches; the base touches all."""
    touched = base.linears if adapter is None else adapter.factors
    return [base.module_index[module] for module in touched]


def _mean(row: Array) -> float:
    # The mean of equal values is that value, without the rounding of a sum.
    return float(row[0]) if (row == row[0]).all() else float(row.mean())


def _inert(recipe: Recipe) -> Iterator[str]:
    given = {*recipe.parameters, *(name for source in recipe.sources.values() for name in source)}
    for parameter in METHODS[recipe.method].parameters:
        if parameter.doc.inert and parameter.name in given:
            yield f"{parameter.name} has no effect in {recipe.method}"


def _warnings(adapters: Mapping[str, Adapter]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, adapter in sorted(adapters.items()):
        names.setdefault(adapter.digest, []).append(name)
    for same in names.values():
        if len(same) > 1:
            yield f"{' and '.join(same)} have the same content: their coefficients are added"
