"""Karcher mean: the Riemannian centre of mass of the sources' directions."""

import math
from typing import Annotated

import torch

from merging.methods.combination import Combination, combined, merge_base, whole_gram
from merging.methods.method import method
from merging.methods.parameter import Doc

OPPOSITE = 1e-6
"""Vectors nearer than this angle to the opposite of the mean have no direction towards it."""


@method(
    "karcher",
    title="Karcher mean",
    paper="https://arxiv.org/abs/2603.04972",
    kind="geometric",
    base="input",
)
def karcher(
    gram: torch.Tensor,
    *,
    max_iter: Annotated[int, Doc("Steps at most.", minimum=0, maximum=10_000)] = 10,
    tol: Annotated[
        float, Doc("Steps and angles below it are over; tensors of a smaller norm are left out.")
    ] = 1e-5,
) -> Combination:
    """The unweighted Karcher mean of the directions of all sources, at the mean of their lengths.

    Gradient descent on the sphere from the normalised mean: `u <- exp_u(T)` with
    `T = mean_i log_u(u_i)`, until `|T| < tol`. All of it runs on the Gram matrix of the sources:
    u is kept as its coefficients in the unit vectors `u_i = x_i / |x_i|`. A source opposite to u
    does not pull it; sources whose directions sum to zero start from the first.
    """
    between = whole_gram(gram)[1:, 1:]
    norms = between.diagonal().clamp(min=0).sqrt()
    if len(norms) == 1:
        return Combination((1.0,), base_scale=1.0)
    valid = norms > tol
    shares = torch.zeros_like(norms)
    if valid.any():
        lengths = norms[valid]
        cosines = between[valid][:, valid] / torch.outer(lengths, lengths)
        shares[valid] = _mean_direction(cosines, max_iter, tol) / lengths * norms.mean()
    return merge_base(combined(shares))


def _mean_direction(cosines: torch.Tensor, max_iter: int, tol: float) -> torch.Tensor:
    """Coefficients float64 [N] of the mean u of N unit vectors with these cosines [N, N]."""
    count = len(cosines)
    u = torch.full((count,), 1 / count, dtype=torch.float64)
    length = _length(u, cosines)
    u = u / length if length >= tol else torch.eye(count, dtype=torch.float64)[0]
    for _ in range(max_iter):
        cosine = (cosines @ u).clamp(-1, 1)
        angle = torch.acos(cosine)
        undirected = (angle < tol) | (math.pi - angle < OPPOSITE)
        stretch = torch.where(undirected, 0.0, angle / torch.sin(angle)) / count
        tangent = stretch - (stretch @ cosine) * u
        step = _length(tangent, cosines)
        if step < tol:
            break
        u = torch.cos(step) * u + torch.sin(step) / step * tangent
        u = u / _length(u, cosines)
    return u


def _length(coefficients: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    return (coefficients @ cosines @ coefficients).clamp(min=0).sqrt()
