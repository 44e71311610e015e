"""How one tensor of a variant is built: steps, each of tasks that can be done side by side."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

import torch

from merging.combining import GramSum, combine_deltas, combine_piece, terms_of
from merging.elementwise import find_trim, merge_piece, merge_whole
from merging.errors import MergingError
from merging.merged_tensor import MergedTensor
from merging.methods.combination import Combination
from merging.methods.trim import Threshold
from merging.operand import Operands, open_operands
from merging.pieces import Scratch
from merging.thresholds import ThresholdKey
from merging.trim_cache import PackedTrim, TrimCache
from merging.variant import TensorPlan, VariantPlan
from merging.workers import Task

Phase = Literal["threshold", "trim", "gram", "merge"]
Step = tuple[Phase, list[Task]]

GROUP: Final = 8
"""Pieces of one task."""


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What all tensors of a build share."""

    plan: VariantPlan
    cache: TrimCache | None
    scratch: Scratch
    thresholds: Mapping[ThresholdKey, Threshold]


@dataclass(slots=True, eq=False)
class TensorBuild:
    """One tensor, to be written into `target`.

    When its steps are done, `problems` says why it has no result, and `change` is
    ||merged - W0|| / ||W0||, None without a base.
    """

    shared: Shared
    tensor: TensorPlan
    target: torch.Tensor
    problems: list[str] = field(default_factory=list)
    change: float | None = None
    _not_finite: list[tuple[str, int]] = field(default_factory=list)

    def steps(self) -> Iterator[Step]:
        """The steps in order; each must be done before the next is asked for."""
        try:
            operands = open_operands(self.shared.plan, self.tensor)
            if all(operand.plain.is_floating_point() for operand in operands.all):
                yield from self._merge(operands)
            else:
                yield "merge", [partial(self._copy, operands)]
        except MergingError as error:
            self.problems += error.reasons
        self.problems += self._finite_problems()

    def _copy(self, operands: Operands) -> None:
        """Whole numbers, such as positions, are not merged: they must be the same in all."""
        first = operands.all[0]
        for operand in operands.all[1:]:
            if operand.plain.dtype != first.plain.dtype or not operand.plain.equal(first.plain):
                self.problems.append(
                    f"is of {str(first.plain.dtype).removeprefix('torch.')}, which cannot be "
                    f"merged, and {first.name} and {operand.name} have different values"
                )
        if not self.problems:
            self.target.copy_(first.plain)

    def _merge(self, operands: Operands) -> Iterator[Step]:
        assert self.target.shape == self.tensor.shape, f"{self.tensor.name}: {self.target.shape}"
        if not operands.pieces:
            return  # a tensor without elements
        merged, method = MergedTensor(self.target, operands.pieces), self.shared.plan.method
        if method.kind == "elementwise":
            yield from self._elementwise(operands, merged)
        elif method.kind == "linear":
            yield "merge", self._combine(operands, merged, method.combine(operands.values))
        else:
            vectors, groups = method.vectors(operands.values), _groups(operands)
            sums = GramSum(operands, vectors, len(groups))
            yield "gram", [partial(self._gram, operands, sums, *part) for part in enumerate(groups)]
            if not self._failed:
                combination = method.combine_gram(sums.total(), operands.values)
                yield "merge", self._combine(operands, merged, combination, sums)
        if not self._failed:
            self.change = merged.finish()

    def _gram(self, operands: Operands, sums: GramSum, part: int, indices: range) -> None:
        if not sums.add(part, indices, self.shared.scratch):
            self._blame(operands, indices)

    def _combine(
        self,
        operands: Operands,
        merged: MergedTensor,
        combination: Combination,
        sums: GramSum | None = None,
    ) -> list[Task]:
        scratch = self.shared.scratch
        coefficients = (combination.base_scale, *combination.coefficients)
        if not any(isinstance(c, torch.Tensor) and c.ndim for c in coefficients):
            terms = terms_of(operands, combination)
            if terms.is_exact:
                return self._pieces(
                    operands, lambda i: combine_piece(operands, terms, i, scratch, merged)
                )
        vectors = "all" if sums is None else sums.vectors
        return self._pieces(
            operands, lambda i: combine_deltas(operands, combination, vectors, i, scratch, merged)
        )

    def _elementwise(self, operands: Operands, merged: MergedTensor) -> Iterator[Step]:
        method, scratch = self.shared.plan.method, self.shared.scratch
        found: list[PackedTrim | None] = [None] * len(operands.sources)
        if method.trim is not None:
            yield "trim", [partial(self._trim, operands, found, i) for i in range(len(found))]
        trims = [trim for trim in found if trim is not None]
        if self._failed:
            return
        if method.pointwise:
            yield (
                "merge",
                self._pieces(
                    operands, lambda i: merge_piece(method, operands, trims, i, scratch, merged)
                ),
            )
        else:
            yield "merge", [partial(self._whole, operands, trims, merged)]

    def _trim(self, operands: Operands, found: list[PackedTrim | None], source: int) -> None:
        shared = self.shared
        values = shared.plan.method.trim_values(operands.values, source)
        own = (operands.sources[source].digest, tuple(sorted(values.items())))
        found[source] = find_trim(
            shared.plan.method,
            operands,
            source,
            shared.plan.seed,
            shared.thresholds.get(own),
            shared.cache,
            shared.scratch,
        )
        if found[source] is None:
            self._blame(operands, range(len(operands.pieces)))

    def _whole(self, operands: Operands, trims: list[PackedTrim], merged: MergedTensor) -> None:
        if not merge_whole(self.shared.plan.method, operands, trims, self.shared.scratch, merged):
            self._blame(operands, range(len(operands.pieces)))

    def _pieces(self, operands: Operands, write: Callable[[int], bool]) -> list[Task]:
        """Write all pieces, a group at a time; `write` says whether one is finite."""

        def group(indices: range) -> None:
            if bad := [index for index in indices if not write(index)]:
                self._blame(operands, bad)

        return [partial(group, indices) for indices in _groups(operands)]

    def _blame(self, operands: Operands, indices: Iterator[int] | range | list[int]) -> None:
        """Find whose values are not finite in some pieces; if nobody's are, the result's."""
        found = []
        for index in indices:
            for operand in operands.all:
                values = self.shared.scratch.row("blame", operands.pieces[index].size)
                operand.read(index, values)
                if count := values.numel() - int(torch.isfinite(values).sum()):
                    found.append((operand.name, count))
        self._not_finite += found or [("", 0)]

    @property
    def _failed(self) -> bool:
        return bool(self.problems or self._not_finite)

    def _finite_problems(self) -> list[str]:
        """What was not finite."""
        counts: Counter[str] = Counter()
        for name, count in self._not_finite:
            counts[name] += count
        named = [
            f"has {count} values of {self.target.numel()} in {name} that are not finite"
            for name, count in sorted(counts.items())
            if name
        ]
        if counts and not named:
            dtype = str(self.target.dtype).removeprefix("torch.")
            return [f"its merged values are not finite in {dtype}; lower the weights"]
        return named


def _groups(operands: Operands) -> list[range]:
    count = len(operands.pieces)
    return [range(start, min(start + GROUP, count)) for start in range(0, count, GROUP)]
