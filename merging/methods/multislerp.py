"""Multi-SLERP: the weighted mean of directions, at the weighted mean of lengths."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch

from merging.errors import PlanError
from merging.methods.combination import Combination, combined
from merging.methods.method import method
from merging.methods.parameter import Doc

RESOLUTION = 1e-7
"""Means of unit vectors that are shorter cannot be told from zero by a Gram matrix in float64."""


def _check(weight: tuple[float, ...], normalize_weights: bool) -> None:
    size = math.fsum(abs(w) for w in weight)
    if len(weight) > 1 and normalize_weights and abs(math.fsum(weight)) <= 1e-8 * size:
        raise PlanError(
            f"the weights {list(weight)} sum to 0 and cannot be normalized; change one, or set "
            f"normalize_weights to false"
        )


@method(
    "multislerp",
    title="Multi-SLERP",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    kind="geometric",
    base="optional",
    batched=True,
    check=_check,
)
def multislerp(
    gram: torch.Tensor,
    weight: Annotated[Sequence[float], Doc("Share of the source.")],
    *,
    normalize_weights: Annotated[bool, Doc("Divide the weights by their sum.")] = True,
    eps: Annotated[float, Doc("Added to norms before they divide.", minimum=0.0)] = 1e-8,
) -> Combination:
    """Barycentric interpolation on a hypersphere, of deltas or without a base of tensors:
    `y = (sum_i w_i |x_i|) m / |m|` with `m = sum_i w_i x_i / |x_i|`.

    mergekit projects the unit vectors on the tangent space at `m / |m|` and sums them there; that
    sum is `m - <m, m> m / |m|^2 = 0`, so it is left out. Where m is zero, two sources are
    summed as they are, and more have no result, unless all are zero. A single source is
    returned as it is.
    """
    shares = torch.tensor(weight, dtype=torch.float64)
    if len(weight) == 1:
        return Combination((1.0,))
    if normalize_weights:
        _check(tuple(weight), normalize_weights)
        shares = shares / shares.sum()
    between = gram[..., 1:, 1:]
    norms = between.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    units = shares / (norms + eps)  # of m, in terms of the sources
    squares = units * (between @ units[..., None])[..., 0]
    length = squares.sum(dim=-1, keepdim=True).clamp(min=0).sqrt()
    directed = length >= max(eps, RESOLUTION)
    if len(weight) > 2 and (~directed & (norms > eps).any(dim=-1, keepdim=True)).any():
        raise PlanError(
            f"the directions of the sources cancel with the weights {list(weight)}, so their mean "
            f"has no direction; change a weight"
        )
    means = units * ((norms @ shares)[..., None] / length)
    return combined(torch.where(directed, means, shares))
