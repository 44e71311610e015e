"""DELLA without election: drop elements at random, small ones more often, and sum."""

import torch

from merging.methods.consensus import weighted_sum
from merging.methods.method import method
from merging.methods.task_vectors import (
    Density,
    Epsilon,
    Int8Mask,
    Lambda,
    Normalize,
    Rescale,
    RescaleNormOf,
    WeightOfDelta,
)
from merging.methods.trims import by_rank, check_epsilon


@method(
    "della_linear",
    title="DELLA linear",
    paper="https://arxiv.org/abs/2406.11617",
    kind="elementwise",
    pointwise=True,
    is_random=True,
    trim=by_rank,
    check=check_epsilon,
)
def della_linear(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    weight: WeightOfDelta,
    density: Density,
    epsilon: Epsilon,
    *,
    normalize: Normalize = False,
    rescale: Rescale = True,
    rescale_norm: RescaleNormOf = "auto",
    lambda_: Lambda = 1.0,
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Drop and fuse: keep each element with a probability from `density - epsilon` for
    the smallest of its row to `density + epsilon` for the largest, and add the weighted sum,
    `lambda * sum_i w_i tau_i`.
    """
    return weighted_sum(deltas, weight, normalize=normalize, factor=lambda_)
