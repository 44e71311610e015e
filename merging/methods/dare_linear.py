"""DARE with task arithmetic: drop elements of each delta at random, rescale, and sum."""

import torch

from merging.methods.consensus import weighted_sum
from merging.methods.method import method
from merging.methods.task_vectors import (
    Density,
    Int8Mask,
    Lambda,
    Normalize,
    Rescale,
    RescaleNormOf,
    SemanticsOfDare,
    WeightOfDelta,
)
from merging.methods.trims import at_random


@method(
    "dare_linear",
    title="DARE linear",
    paper="https://arxiv.org/abs/2311.03099",
    kind="elementwise",
    pointwise=True,
    is_random=True,
    trim=at_random,
)
def dare_linear(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    weight: WeightOfDelta,
    density: Density,
    *,
    semantics: SemanticsOfDare = "mergekit",
    normalize: Normalize = False,
    rescale: Rescale = True,
    rescale_norm: RescaleNormOf = "auto",
    lambda_: Lambda = 1.0,
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Drop and rescale: keep each element of a delta with probability `density`, make
    up for the rest, and add the weighted sum, `lambda * sum_i w_i tau_i`.
    """
    return weighted_sum(deltas, weight, normalize=normalize, factor=lambda_)
