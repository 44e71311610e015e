"""Elementwise methods: trims of whole deltas, and what is made of them piece by piece."""

from collections.abc import Sequence

import torch

from merging.merged_tensor import MergedTensor, square
from merging.methods.method import Method
from merging.methods.random import Random
from merging.methods.trim import Threshold, Trim
from merging.operand import Operand, Operands
from merging.pieces import Scratch
from merging.trim_cache import PackedTrim, TrimCache, TrimKey, pack


def find_trim(
    method: Method,
    operands: Operands,
    source: int,
    seed: int,
    threshold: Threshold | None,
    cache: TrimCache | None,
    scratch: Scratch,
) -> PackedTrim | None:
    """The trim of the delta of one of the operands' sources, from the cache or anew.

    Needs the whole delta in float32 where the cache has none. None if it is not finite.
    """
    assert method.trim is not None
    operand, values = operands.sources[source], method.trim_values(operands.values, source)
    key = TrimKey(
        trim=method.trim,
        base=None if operands.base is None else operands.base.origin,
        plain=operand.origin,
        source=operand.digest,
        tensor=operand.tensor,
        values=tuple(sorted(values.items())),
        threshold=threshold,
        seed=seed if method.is_random else None,
    )

    def compute() -> PackedTrim | None:
        trim, random = method.trim, Random(seed, operand.digest, operand.tensor)
        assert isinstance(trim, Trim)
        delta = whole_delta(operands, operand, scratch)
        if delta is None:
            return None
        return pack(trim(delta, random=random, threshold=threshold, **values))

    return compute() if cache is None else cache.get(key, compute)


def whole_delta(operands: Operands, operand: Operand, scratch: Scratch) -> torch.Tensor | None:
    """A delta in float32, in the shape of its tensor; None if it is not finite."""
    delta = torch.empty(operands.plan.shape)
    is_finite = True
    for index, part in enumerate(operands.split(delta)):
        base = None if operands.base is None else operands.read_base(index, scratch)
        operand.read_delta(index, base, part)
        is_finite = is_finite and all_finite(part)
    return delta if is_finite else None


def all_finite(values: torch.Tensor) -> bool:
    """Whether a piece, flat and float32, is finite: fast if its squares are too."""
    # inf - inf and 0 * inf are NaN, and none of these is smaller than infinity.
    return square(values) < torch.inf or bool(torch.isfinite(values).all())


def merge_piece(
    method: Method,
    operands: Operands,
    trims: Sequence[PackedTrim],
    index: int,
    scratch: Scratch,
    merged: MergedTensor,
) -> bool:
    """Write one piece by a pointwise method; whether it and its inputs are finite.

    `trims`: one for each source, or none.
    """
    base = operands.read_base(index, scratch)
    deltas = operands.read_deltas(index, base, scratch).each
    # Also what a method leaves out must be finite; a delta that has a trim is.
    is_finite = bool(trims) or all(all_finite(delta) for delta in deltas)
    for delta, trim in zip(deltas, trims, strict=False):
        trim.apply(operands.pieces[index].start, delta)
    change = method.merge_deltas(base, deltas, operands.values)
    result = torch.add(base, change, out=scratch.row("result", len(base)))
    return merged.write(index, result, change, base) and is_finite


def merge_whole(
    method: Method,
    operands: Operands,
    trims: Sequence[PackedTrim],
    scratch: Scratch,
    merged: MergedTensor,
) -> bool:
    """Write a tensor by a method that must see all of it; whether it and its inputs are finite.

    Needs the base's tensor and every delta in float32, and what the method makes of them.
    """
    base = torch.empty(operands.plan.shape)
    for index, part in enumerate(operands.split(base)):
        part.copy_(operands.read_base(index, scratch))
    deltas = []
    for operand in operands.sources:
        delta = whole_delta(operands, operand, scratch)
        if delta is None:
            return False
        deltas.append(delta)
    for delta, trim in zip(deltas, trims, strict=False):
        trim.apply(0, delta.view(-1))
    change = method.merge_deltas(base, tuple(deltas), operands.values)
    del deltas
    is_finite = True
    parts = zip(operands.split(base), operands.split(change.contiguous()), strict=True)
    for index, (old, part) in enumerate(parts):
        result = torch.add(old, part, out=scratch.row("result", len(old)))
        is_finite &= merged.write(index, result, part, old)
    return is_finite
