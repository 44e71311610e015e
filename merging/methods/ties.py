"""TIES: trim each delta to its largest elements, elect signs, and sum what agrees."""

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
    ScopeOfTrim,
    SemanticsOfTies,
    WeightOfDelta,
)
from merging.methods.trims import by_magnitude


@method(
    "ties",
    title="TIES",
    paper="https://arxiv.org/abs/2306.01708",
    kind="elementwise",
    pointwise=True,
    trim=by_magnitude,
)
def ties(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    weight: WeightOfDelta,
    density: Density,
    *,
    semantics: SemanticsOfTies = "mergekit",
    scope: ScopeOfTrim = "tensor",
    normalize: NormalizeAgreeing = True,
    rescale: Rescale = False,
    rescale_norm: RescaleNormOf = "auto",
    lambda_: Lambda = 1.0,
    int8_mask: Int8Mask = False,
) -> torch.Tensor:
    """Trim, elect, merge (Algorithm 1): keep the `density` largest elements of every delta, elect
    the sign of each element's sum, and add the mean of the deltas that agree with it.

    The authors' code is semantics paper with scope model. There, an element whose sum is exactly 0
    takes the majority sign of the model; here it takes plus, as in mergekit and PEFT.
    """
    return agreeing_sum(deltas, weight, semantics=semantics, normalize=normalize, factor=lambda_)
