"""DARE with TIES: drop elements of each delta at random, rescale, elect signs, and sum."""

import torch

from merging.methods.consensus import agreeing_sum
from merging.methods.method import method
from merging.methods.task_vectors import (
    Density,
    Int8Mask,
    Lambda,
    NormalizeAgreeing,
    Rescale,
    RescaleNormOf,
    SemanticsOfDareTies,
    WeightOfDelta,
)
from merging.methods.trims import at_random


@method(
    "dare_ties",
    title="DARE TIES",
    paper="https://arxiv.org/abs/2311.03099",
    kind="elementwise",
    pointwise=True,
    is_random=True,
    trim=at_random,
)
def dare_ties(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    weight: WeightOfDelta,
    density: Density,
    *,
    semantics: SemanticsOfDareTies = "mergekit",
    normalize: NormalizeAgreeing = False,
    rescale: Rescale = True,
    rescale_norm: RescaleNormOf = "auto",
    lambda_: Lambda = 1.0,
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Drop and rescale, then elect and merge as TIES does: of the elements that are
    left, those that agree with the sign of their sum are summed.
    """
    return agreeing_sum(deltas, weight, semantics=semantics, normalize=normalize, factor=lambda_)
