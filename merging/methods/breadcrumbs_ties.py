"""Model Breadcrumbs with TIES: drop the largest and the smallest elements, elect signs, and sum."""

import torch

from merging.methods.consensus import agreeing_sum
from merging.methods.method import method
from merging.methods.task_vectors import (
    Density,
    Gamma,
    Int8Mask,
    Lambda,
    NormalizeAgreeing,
    Rescale,
    RescaleNormOf,
    ScopeOfTrim,
    WeightOfDelta,
)
from merging.methods.trims import without_outliers


@method(
    "breadcrumbs_ties",
    title="Model Breadcrumbs TIES",
    paper="https://arxiv.org/abs/2312.06795",
    kind="elementwise",
    pointwise=True,
    trim=without_outliers,
)
def breadcrumbs_ties(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    weight: WeightOfDelta,
    density: Density,
    gamma: Gamma,
    *,
    scope: ScopeOfTrim = "tensor",
    normalize: NormalizeAgreeing = False,
    rescale: Rescale = False,
    rescale_norm: RescaleNormOf = "auto",
    lambda_: Lambda = 1.0,
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Drop outliers and the smallest changes, then elect and merge as TIES does: of
    the elements that are left, those that agree with the sign of their sum are summed.
    """
    return agreeing_sum(deltas, weight, semantics="mergekit", normalize=normalize, factor=lambda_)
