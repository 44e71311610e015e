"""Model Breadcrumbs: drop the largest and the smallest elements of each delta, and sum."""

import torch

from merging.methods.consensus import weighted_sum
from merging.methods.method import method
from merging.methods.task_vectors import (
    Density,
    Gamma,
    Int8Mask,
    Lambda,
    Normalize,
    Rescale,
    RescaleNormOf,
    ScopeOfTrim,
    WeightOfDelta,
)
from merging.methods.trims import without_outliers


@method(
    "breadcrumbs",
    title="Model Breadcrumbs",
    paper="https://arxiv.org/abs/2312.06795",
    kind="elementwise",
    pointwise=True,
    trim=without_outliers,
)
def breadcrumbs(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    weight: WeightOfDelta,
    density: Density,
    gamma: Gamma,
    *,
    scope: ScopeOfTrim = "tensor",
    normalize: Normalize = False,
    rescale: Rescale = False,
    rescale_norm: RescaleNormOf = "auto",
    lambda_: Lambda = 1.0,
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Drop outliers and the smallest changes: of every delta the `gamma` largest and
    then the smallest elements go, until `density` is left; add `lambda * sum_i w_i tau_i`.
    """
    return weighted_sum(deltas, weight, normalize=normalize, factor=lambda_)
