"""RAM: what one source changed is kept whole, what several did is averaged."""

from typing import Annotated

import torch

from merging.methods.method import method
from merging.methods.parameter import Doc
from merging.methods.reinforcement import active_masks, reinforced_sum

Epsilon = Annotated[float, Doc("Deltas that are not larger count as no change.", minimum=0.0)]


@method(
    "ram",
    title="RAM",
    paper="https://arxiv.org/abs/2601.13572",
    kind="elementwise",
    pointwise=True,
)
def ram(
    base: torch.Tensor, deltas: tuple[torch.Tensor, ...], *, epsilon: Epsilon = 1e-5
) -> torch.Tensor:
    """Reinforced agent merging (2601.13572): an element that one source changed by more than
    `epsilon` is taken from it; one that several changed is the mean of theirs.
    """
    masks, count = active_masks(deltas, epsilon)
    return reinforced_sum(deltas, masks, count, [1.0] * len(deltas))
