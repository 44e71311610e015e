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
    """Elect a sign for each element and sum what has it (TIES, 2306.01708, Algorithm 1).

    mergekit: the sign of `sum_i w_i tau_i` (plus if that is 0) is elected, and `w_i tau_i` of that
    sign are summed; `normalize` divides by the sum of their weights, unless those cancel.
    peft, paper: the sign of `sum_i tau_i` is elected, and `w_i tau_i` of the `tau_i` of that sign
    are summed and divided by their number.
    """
    voters = [1.0] * len(weights) if semantics != "mergekit" else weights
    total = torch.zeros_like(deltas[0])
    for delta, vote in _pairs(deltas, voters):
        total += delta * vote  # rounded before it is added: equal and opposite ones make 0
    sign = torch.ones_like(total).copysign_(total)  # a sum that starts from +0 is never -0
    agreeing = [(delta * vote).mul_(sign).clamp_(min=0) for delta, vote in _pairs(deltas, voters)]
    merged = torch.zeros_like(total)
    if semantics == "mergekit":
        for part in agreeing:
            merged += part
        if normalize:
            merged /= _sum_of_agreeing(agreeing, weights)
    else:
        for part, weight in _pairs(agreeing, weights):
            merged.add_(part, alpha=weight)
        merged /= _sum_of_agreeing(agreeing, voters)
    return merged.mul_(sign).mul_(factor)


def _sum_of_agreeing(agreeing: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weights of the sources that agree, by element; no divisor where none do or they cancel.

    `agreeing`: above 0 where the source agrees, else 0.
    """
    divisor, size = torch.zeros_like(agreeing[0]), torch.zeros_like(agreeing[0])
    for part, weight in _pairs(agreeing, weights):
        divisor.add_(part.sign(), alpha=weight)
    if all(weight >= 0 for weight in weights):
        return divisor.clamp_(min=TINY)  # what it divides is 0 where no source agrees
    for part, weight in _pairs(agreeing, weights):
        size.add_(part.sign(), alpha=abs(weight))
    return torch.where(divisor.abs() <= CANCELLED * size, 1.0, divisor)


def _pairs(
    tensors: Sequence[torch.Tensor], numbers: Sequence[float]
) -> Iterator[tuple[torch.Tensor, float]]:
    return zip(tensors, numbers, strict=True)
