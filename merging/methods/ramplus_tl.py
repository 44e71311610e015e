"""RAM+ (tensor-local): RAM that grows what one source changed, to make up for what is averaged."""

from typing import Annotated

import torch

from merging.methods.method import method
from merging.methods.parameter import Doc
from merging.methods.ram import Epsilon
from merging.methods.reinforcement import active_masks, reinforced_sum


@method(
    "ramplus_tl",
    title="RAM+ (tensor-local)",
    paper="https://arxiv.org/abs/2601.13572",
    kind="elementwise",
)
def ramplus_tl(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    *,
    r: Annotated[float, Doc("How much the ratio of shared to own elements grows the own.")] = 0.1,
    alpha: Annotated[float, Doc("What that ratio is clamped to.", minimum=0.0)] = 0.2,
    epsilon: Epsilon = 1e-5,
) -> torch.Tensor:
    """RAM, with the own elements of source i scaled by `1 + r * clamp(rho_i, 0, alpha)`.

    `rho_i` is the number of the tensor's elements that source i and others changed, over the number
    that only source i changed.
    """
    masks, count = active_masks(deltas, epsilon)
    factors = []
    for mask in masks:
        shared, unique = (int((mask & part).sum()) for part in (count > 1, count == 1))
        ratio = shared / unique if unique else (alpha if shared else 0.0)
        factors.append(1 + r * min(ratio, alpha))
    return reinforced_sum(deltas, masks, count, factors)
