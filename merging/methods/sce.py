"""SCE: select what differs between the sources, weigh them by their energy, erase minorities."""

from typing import Annotated, Literal

import torch

from merging.methods.method import method
from merging.methods.parameter import Doc
from merging.methods.selection import largest
from merging.methods.task_vectors import Int8Mask

SMALL = 1e-6
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
    stack = torch.stack(deltas)
    if select_topk < 1:
        stack *= _selected(stack, select_topk)
    sign = torch.where(stack.sum(dim=0) >= 0, 1.0, -1.0)
    smallest = SMALL if semantics == "mergekit" else 0.0
    shares = _shares(stack, smallest).reshape(-1, *[1] * base.ndim)
    erased = (stack * sign > 0) * shares
    total = erased.sum(dim=0)
    divisor = total.clamp(min=SMALL) if smallest else torch.where(total == 0, 1.0, total)
    return (stack * erased).sum(dim=0) / divisor


def _selected(stack: torch.Tensor, share: float) -> torch.Tensor:
    variance = _variance(stack)
    return largest(variance, int(int(torch.count_nonzero(variance)) * share))


def _variance(stack: torch.Tensor) -> torch.Tensor:
    """Population variance over the sources, exactly 0 where all are equal.

    In two passes from the first source on, as `torch.var` takes twenty times as long.
    """
    shifted = stack - stack[0]
    shifted -= shifted.mean(dim=0)
    return shifted.square_().mean(dim=0)


def _shares(stack: torch.Tensor, smallest: float) -> torch.Tensor:
    """Each source's share of the mean squares, float32 [N]; equal if those sum to too little."""
    energy = stack.reshape(len(stack), -1).square().mean(dim=1, dtype=torch.float64)
    total = float(energy.sum())
    if total == 0 or total < smallest:
        return torch.full((len(stack),), 1 / len(stack))
    return (energy / total).float()
