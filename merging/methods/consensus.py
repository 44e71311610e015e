"""How trimmed deltas become one: their weighted sum, or the sum of those that agree on a sign."""

import math
from collections.abc import Iterator, Sequence

import torch

from merging.methods.task_vectors import Semantics

SMALL_SUM = 1e-8
"""Weights that sum to less do not divide, as in mergekit."""

CANCELLED = 1e-6
"""Weights of both signs that sum to less than this share of their magnitudes cancel: float32
rounding would be all that is left to divide by.
"""

TINY = 1e-30


def weighted_sum(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool, factor: float
) -> torch.Tensor:
    """`factor * sum_i w_i tau_i`, divided by `sum w` if `normalize` (unless that is about 0)."""
    total = math.fsum(weights) if normalize else 1.0
    scale = factor / (total if abs(total) >= SMALL_SUM else 1.0)
    merged = torch.zeros_like(deltas[0])
    for delta, weight in _pairs(deltas, weights):
        merged.add_(delta, alpha=weight)
    return merged.mul_(scale)


def agreeing_sum(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    semantics: Semantics,
    normalize: bool,
    factor: float,
) -> torch.Tensor:
    """Elect a sign for each element and sum what has it (TIES, 2306.01708, Algorithm 1); the deltas
    are written over: fresh memory for each piece takes as long as the arithmetic.

    mergekit: the sign of `sum_i w_i tau_i` (plus if that is 0) is elected, and `w_i tau_i` of that
    sign are summed; `normalize` divides by the sum of their weights, unless those cancel.
    peft, paper: the sign of `sum_i tau_i` is elected, and `w_i tau_i` of the `tau_i` of that sign
    are summed and divided by their number.
    """
    voters = [1.0] * len(weights) if semantics != "mergekit" else weights
    # Rounded before they are added: equal and opposite votes make 0.
    votes = [delta if vote == 1 else delta.mul_(vote) for delta, vote in _pairs(deltas, voters)]
    sign = elect(votes)
    agreeing = agree(votes, sign)
    if semantics == "mergekit":
        merged = _sum(agreeing)
        if normalize:
            merged /= _sum_of_agreeing(agreeing, weights)
    else:
        merged = torch.zeros_like(sign)
        for part, weight in _pairs(agreeing, weights):
            merged.add_(part, alpha=weight)
        merged /= _sum_of_agreeing(agreeing, voters)
    merged.mul_(sign)
    return merged if factor == 1 else merged.mul_(factor)


def elect(votes: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sign of each element's sum: 1 or -1, float32; 1 where the sum is 0."""
    # By its bits: a comparison or `copysign` takes several times as long.
    total = _sum(votes)
    total.view(torch.int32).bitwise_and_(-(1 << 31)).bitwise_or_(0x3F800000)
    return total


def agree(votes: Sequence[torch.Tensor], sign: torch.Tensor) -> list[torch.Tensor]:
    """The magnitudes of the votes with the elected sign, and 0 for others; in place of them."""
    return [vote.mul_(sign).clamp_(min=0) for vote in votes]


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].clone() if len(tensors) == 1 else tensors[0] + tensors[1]
    for tensor in tensors[2:]:
        total += tensor
    return total


def _sum_of_agreeing(agreeing: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weights of the sources that agree, by element; no divisor where none do or they cancel.

    `agreeing`: above 0 where the source agrees, else 0; written over.
    """
    flags = [part.sign_() for part in agreeing]
    # What it divides is 0 where no source agrees; no weight that matters is near TINY.
    divisor = torch.add(torch.tensor(TINY), flags[0], alpha=weights[0])
    for flag, weight in list(_pairs(flags, weights))[1:]:
        divisor.add_(flag, alpha=weight)
    if all(weight >= 0 for weight in weights):
        return divisor
    size = torch.zeros_like(divisor)
    for flag, weight in _pairs(flags, weights):
        size.add_(flag, alpha=abs(weight))
    return torch.where(divisor.abs() <= CANCELLED * size, 1.0, divisor)


def _pairs(
    tensors: Sequence[torch.Tensor], numbers: Sequence[float]
) -> Iterator[tuple[torch.Tensor, float]]:
    return zip(tensors, numbers, strict=True)
