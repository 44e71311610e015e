"""Trims over a whole source: the k-th largest magnitude of all its deltas together, exactly."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TypeVar

import torch

from merging.errors import MergingError
from merging.methods.histogram import LowerHalves, UpperHalves
from merging.methods.trim import Threshold
from merging.operand import Operand, Operands, open_operands
from merging.pieces import Scratch
from merging.setting import Scalar
from merging.trim_cache import OVERHEAD, TrimCache
from merging.variant import TensorPlan, VariantPlan
from merging.workers import Task

ThresholdKey = tuple[str, tuple[tuple[str, Scalar], ...]]
"""A source's digest, and `Method.trim_values` for it, sorted."""

Run = Callable[[list[Task]], None]
"""Does tasks side by side."""

Halves = TypeVar("Halves", UpperHalves, LowerHalves)


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The k-th largest magnitudes of a source, by k."""

    magnitudes: Mapping[int, float]

    @property
    def num_bytes(self) -> int:
        return OVERHEAD


def find_thresholds(
    plan: VariantPlan, cache: TrimCache | None, scratch: Scratch, run: Run
) -> dict[ThresholdKey, Threshold]:
    """The thresholds of all trims of the plan that look at whole sources; often none. None either
    for a source of which a tensor cannot be read: building that tensor says why.

    A source is all tensors of the plan that it changes. Two passes over its deltas count the upper
    and then the lower halves of their float32 magnitudes, which sort like whole numbers.
    """
    found: dict[ThresholdKey, Threshold] = {}
    for digest, counts in _counts(plan).items():
        ranks = tuple(sorted({rank for threshold in counts.values() for rank in threshold}))
        tensors = tuple(
            tensor for tensor in plan.tensors if digest in _digests(plan, tensor).values()
        )
        compute = partial(_rank, plan, digest, tensors, ranks, scratch, run)
        names = tuple((tensor.base, _names(plan, tensor, digest)) for tensor in tensors)
        key = ("threshold", plan.base.digest, digest, ranks, names)
        ranked = compute() if cache is None else cache.get(key, compute)
        if ranked is None:
            continue
        for values, wanted in counts.items():
            found[digest, values] = tuple(ranked.magnitudes[rank] for rank in wanted)
    return found


def _digests(plan: VariantPlan, tensor: TensorPlan) -> dict[int, str]:
    """By their places, the sources that change a tensor: others have no elements to keep in it."""
    return {index: plan.sources[name].digest for index, name in plan.touching(tensor)}


def _names(plan: VariantPlan, tensor: TensorPlan, digest: str) -> tuple[str, ...]:
    """The source's own tensors that one is made of. Its name does not tell: contents may swap."""
    digests = _digests(plan, tensor)
    return tuple(tensor.ingredients[i].tensor for i, own in digests.items() if own == digest)


def _counts(
    plan: VariantPlan,
) -> dict[str, dict[tuple[tuple[str, Scalar], ...], tuple[int, ...]]]:
    """By source's digest and values of its trim: the ranks that are needed."""
    trim = plan.method.trim
    if trim is None or trim.counter is None:
        return {}
    sizes: dict[str, int] = {}
    values: dict[str, dict[tuple[tuple[str, Scalar], ...], None]] = {}
    for tensor in plan.tensors:
        for index, digest in _digests(plan, tensor).items():
            sizes[digest] = sizes.get(digest, 0) + math.prod(tensor.shape)
            own = plan.method.trim_values(tensor.values, index)
            values.setdefault(digest, {})[tuple(sorted(own.items()))] = None
    counts = {
        digest: {each: trim.counts(sizes[digest], **dict(each)) for each in own}
        for digest, own in values.items()
    }
    return {
        digest: wanted
        for digest, own in counts.items()
        if (wanted := {each: ranks for each, ranks in own.items() if ranks})
    }


def _rank(
    plan: VariantPlan,
    digest: str,
    tensors: tuple[TensorPlan, ...],
    ranks: tuple[int, ...],
    scratch: Scratch,
    run: Run,
) -> Ranked | None:
    """None if a tensor could not be read: the ranks of the others are no ranks of the source."""
    counting = _Counting(plan, digest, tensors, scratch, run)
    upper = counting.count(UpperHalves)
    if upper is None:
        return None
    # k-th largest: in which upper half it is, and the how-many-th largest of that half.
    places = {rank: upper.place(rank) for rank in ranks if rank}
    lower = counting.count(partial(LowerHalves, [half for half, _ in places.values()]))
    if lower is None:
        return None
    return Ranked({0: math.inf, **{rank: lower.magnitude(*at) for rank, at in places.items()}})


@dataclass(frozen=True, slots=True)
class _Counting:
    """Counts the magnitudes of a source's deltas."""

    plan: VariantPlan
    digest: str
    tensors: tuple[TensorPlan, ...]
    scratch: Scratch
    run: Run
    lock: Lock = field(default_factory=Lock)

    def count(self, make: Callable[[], Halves]) -> Halves | None:
        """One pass; None if a tensor could not be read."""
        counts, failed = make(), list[str]()
        self.run([partial(self._count, tensor, make, counts, failed) for tensor in self.tensors])
        return None if failed else counts

    def _count(
        self, tensor: TensorPlan, make: Callable[[], Halves], counts: Halves, failed: list[str]
    ) -> None:
        """Count one tensor, or add its name to `failed`."""
        try:
            operands = open_operands(self.plan, tensor)
        except MergingError:
            failed.append(tensor.name)
            return  # who builds the tensor says why
        own = [operand for operand in operands.sources if operand.digest == self.digest]
        counted = make()
        for magnitudes in _magnitudes(operands, own, self.scratch):
            counted.count(magnitudes)
        with self.lock:
            counts.add(counted)


def _magnitudes(
    operands: Operands, sources: list[Operand], scratch: Scratch
) -> Iterator[torch.Tensor]:
    """The deltas' magnitudes, piece by piece."""
    for index, piece in enumerate(operands.pieces):
        base = None if operands.base is None else operands.read_base(index, scratch)
        for operand in sources:
            delta = scratch.row("magnitude", piece.size)
            operand.read_delta(index, base, delta)
            yield delta.abs_()
