"""Model Stock: the mean of the sources, pulled to the base by how far they agree."""

from itertools import combinations
from typing import Annotated

import torch

from merging.methods.combination import Combination, combined
from merging.methods.method import Vectors, method
from merging.methods.parameter import Doc

SMALL_PRODUCT = 1e-6
SINGULAR = 1e-6


def _vectors(filter_wise: bool) -> Vectors:
    return "rows" if filter_wise else "all"


@method(
    "model_stock",
    title="Model Stock",
    paper="https://arxiv.org/abs/2403.19522",
    kind="geometric",
    min_sources=2,
    batched=True,
    vectors=_vectors,
)
def model_stock(
    gram: torch.Tensor,
    *,
    filter_wise: Annotated[bool, Doc("Let each row of a tensor have its own ratio.")] = False,
) -> Combination:
    """`t * mean(x) + (1 - t) * W0` with `t = N c / (1 + (N - 1) c)`, where c is the mean cosine
    between two of the N deltas (2403.19522).

    t is not clamped, as in mergekit: deltas that oppose each other extrapolate away from them.
    Where the denominator is below 1e-6 there is no estimate, and the base stays.
    """
    count = gram.shape[-1] - 1
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    cosines = [
        gram[..., i, j] / (norms[..., i] * norms[..., j]).clamp(min=SMALL_PRODUCT)
        for i, j in combinations(range(1, count + 1), 2)
    ]
    cosine = torch.stack(cosines).clamp(-1, 1).mean(dim=0)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < SINGULAR
    ratio = torch.where(singular, 0.0, cosine / torch.where(singular, 1.0, denominator))
    return combined(ratio[..., None].expand(*ratio.shape, count))
