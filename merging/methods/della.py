"""DELLA: drop elements at random, small ones more often, elect signs, and sum what agrees."""

import torch

from merging.methods.consensus import agreeing_sum
from merging.methods.method import method
from merging.methods.task_vectors import (
    Density,
    Epsilon,
    Int8Mask,
    Lambda,
    NormalizeAgreeing,
    Rescale,
    RescaleNormOf,
    WeightOfDelta,
)
from merging.methods.trims import by_rank, check_epsilon


@method(
    "della",
    title="DELLA",
    paper="https://arxiv.org/abs/2406.11617",
    kind="elementwise",
    pointwise=True,
    is_random=True,
    trim=by_rank,
    check=check_epsilon,
)
def della(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    weight: WeightOfDelta,
    density: Density,
    epsilon: Epsilon,
    *,
    normalize: NormalizeAgreeing = True,
    rescale: Rescale = True,
    rescale_norm: RescaleNormOf = "auto",
    lambda_: Lambda = 1.0,
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Drop, elect, fuse: keep each element with a probability from `density - epsilon`
    for the smallest of its row to `density + epsilon` for the largest, elect the sign of each
    element's sum, and add the mean of the deltas that agree with it.
    """
    return agreeing_sum(deltas, weight, semantics="mergekit", normalize=normalize, factor=lambda_)
