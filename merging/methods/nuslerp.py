"""NuSLERP: two sources, or their deltas, along a great circle."""

from collections.abc import Sequence
from typing import Annotated

import torch

from merging.methods.arc import arc_coefficients
from merging.methods.combination import Combination, combined
from merging.methods.method import Vectors, method
from merging.methods.parameter import Doc

SMALL_NORM = 1e-7
SMALL_SUM = 1e-6
SMALL_SINE = 1e-6
"""Below it, the cosine of opposite vectors is rounding, and so would be what is divided by it."""


def _vectors(nuslerp_flatten: bool, nuslerp_row_wise: bool) -> Vectors:
    if nuslerp_flatten:
        return "all"
    return "columns" if nuslerp_row_wise else "rows"


@method(
    "nuslerp",
    title="NuSLERP",
    paper="https://doi.org/10.1145/325165.325242",
    kind="geometric",
    base="optional",
    min_sources=2,
    max_sources=2,
    batched=True,
    vectors=_vectors,
)
def nuslerp(
    gram: torch.Tensor,
    weight: Annotated[Sequence[float], Doc("Share of the source; only the ratio of both counts.")],
    *,
    nuslerp_flatten: Annotated[bool, Doc("Take each tensor as one vector.")] = True,
    nuslerp_row_wise: Annotated[
        bool,
        Doc("Without flatten: take vectors along the first dimension instead of along the last."),
    ] = False,
) -> Combination:
    """Spherical linear interpolation (Shoemake 1985) of two deltas, or without a base
    of two tensors, at `t = w2 / (w1 + w2)`; at 0.5 where the weights sum to less than 1e-6.

    Vectors that point the same or the opposite way are interpolated linearly. A vector of zeros
    counts as perpendicular. All as in mergekit.
    """
    total = sum(weight)
    t = weight[1] / total if abs(total) >= SMALL_SUM else 0.5
    squares = gram.diagonal(dim1=-2, dim2=-1)[..., 1:]
    norms = squares.clamp(min=0).sqrt().clamp(min=SMALL_NORM)
    cosine = (gram[..., 1, 2] / norms.prod(dim=-1)).clamp(-1, 1)
    straight = 1 - cosine.square() <= SMALL_SINE**2
    return combined(arc_coefficients(cosine, t, straight))
