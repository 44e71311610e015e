"""SCE: select what differs between the sources, weigh them by their energy, erase minorities."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import torch

from merging.methods.blocks import blocks_of
from merging.methods.consensus import agree, elect
from merging.methods.masks import masked
from merging.methods.method import method
from merging.methods.parameter import Doc
from merging.methods.selection import largest
from merging.methods.task_vectors import Int8Mask

SMALL = 1e-6

TINY = 1e-37
"""Divides where no source agrees: what it divides is 0 there."""

Semantics = Literal["mergekit", "paper"]


@method(
    "sce",
    title="SCE",
    paper="https://arxiv.org/abs/2408.07990",
    kind="elementwise",
)
def sce(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    *,
    select_topk: Annotated[
        float, Doc("Share of the elements that differ between sources that is kept.", 0.0, 1.0)
    ] = 1.0,
    semantics: Annotated[
        Semantics,
        Doc(
            "mergekit weighs sources equally where their mean squares sum to less than 1e-6, as "
            "those of most fine-tunes do; paper always weighs them by their mean squares."
        ),
    ] = "mergekit",
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Select, calculate, erase (2408.07990): keep the elements of the largest variance over the
    sources, weigh every source by its mean square, and take the weighted mean of those that agree
    with the sign of an element's sum.
    """
    kept = _selected(deltas, select_topk) if select_topk < 1 else None
    smallest = SMALL if semantics == "mergekit" else 0.0
    shares = _shares(deltas, kept, smallest)
    divisor = SMALL if smallest else TINY
    merged = [_erased(stack, shares, divisor) for stack in _stacks(deltas, kept)]
    return torch.cat(merged).reshape(base.shape)


def _stacks(
    deltas: Sequence[torch.Tensor], kept: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """All deltas, trimmed to what is kept: [N, elements], block by block."""
    blocks = zip(*map(blocks_of, deltas), strict=True)
    if kept is None:
        yield from (torch.stack(parts) for parts in blocks)
    else:
        pairs = zip(blocks, blocks_of(kept), strict=True)
        yield from (masked(torch.stack(parts), mask) for parts, mask in pairs)


def _selected(deltas: Sequence[torch.Tensor], share: float) -> torch.Tensor:
    variance = torch.cat([_variance(stack) for stack in _stacks(deltas)])
    return largest(variance, int(np.count_nonzero(variance.numpy()) * share))


def _variance(stack: torch.Tensor) -> torch.Tensor:
    """Population variance over the sources, exactly 0 where all are equal.

    In two passes from the first source on, as `torch.var` takes twenty times as long.
    """
    shifted = stack - stack[0]
    shifted -= shifted.mean(dim=0)
    return shifted.square_().mean(dim=0)


def _shares(
    deltas: Sequence[torch.Tensor], kept: torch.Tensor | None, smallest: float
) -> list[float]:
    """Each source's share of the mean squares; equal if those sum to too little."""
    count = max(deltas[0].numel(), 1)
    squares = [s.square_().sum(dim=1, dtype=torch.float64) for s in _stacks(deltas, kept)]
    energy = torch.stack(squares).sum(dim=0) / count
    total = float(energy.sum())
    if total == 0 or total < smallest:
        return [1 / len(deltas)] * len(deltas)
    return [float(share) for share in energy / total]


def _erased(stack: torch.Tensor, shares: Sequence[float], smallest: float) -> torch.Tensor:
    """The weighted mean of those that agree, flat; `stack` is written over. `smallest`: at least
    that divides.
    """
    votes = stack.unbind()
    sign = elect(votes)
    agreeing = agree(votes, sign)
    total, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for part, share in zip(agreeing, shares, strict=True):
        total.add_(part, alpha=share)
        divisor.add_(part.sign_(), alpha=share)
    return total.div_(divisor.clamp_(min=smallest)).mul_(sign)
