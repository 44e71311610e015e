"""SLERP: from the base to one source along a great circle."""

from typing import Annotated

import torch

from merging.methods.arc import arc_coefficients
from merging.methods.combination import Combination, combined
from merging.methods.method import method
from merging.methods.parameter import Doc

SMALL_NORM = 1e-8
STRAIGHT = 0.9995


@method(
    "slerp",
    title="SLERP",
    paper="https://doi.org/10.1145/325165.325242",
    kind="geometric",
    batched=True,
    max_sources=1,
)
def slerp(
    gram: torch.Tensor,
    *,
    t: Annotated[float, Doc("How far from the base (0) to the source (1).")],
) -> Combination:
    """Spherical linear interpolation of the flattened tensors of base and source (Shoemake 1985).

    Tensors whose cosine is beyond 0.9995 in absolute value are interpolated linearly, as in
    mergekit: fine-tunes of one base mostly are.
    """
    base, cross, delta = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
    source = (base + 2 * cross + delta).clamp(min=0)
    norms = [torch.where(s.sqrt() > SMALL_NORM, s.sqrt(), 1.0) for s in (base, source)]
    cosine = ((base + cross) / (norms[0] * norms[1])).clamp(-1, 1)
    ends = arc_coefficients(cosine, t, straight=cosine.abs() > STRAIGHT)
    return combined(ends[..., 1:], base_scale=ends.sum(dim=-1))
