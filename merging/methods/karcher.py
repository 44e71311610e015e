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
    batched=True,
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
    between = whole_gram(gram)[..., 1:, 1:]
    norms = between.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    if norms.shape[-1] == 1:
        return Combination((1.0,), base_scale=1.0)
    valid = norms > tol
    lengths = torch.where(valid, norms, torch.inf)  # what is left out is perpendicular to all
    cosines = between / (lengths[..., :, None] * lengths[..., None, :])
    directions = _mean_directions(cosines, valid, max_iter, tol)
    return merge_base(combined(directions / lengths * norms.mean(dim=-1, keepdim=True)))


def _mean_directions(
    cosines: torch.Tensor, valid: torch.Tensor, max_iter: int, tol: float
) -> torch.Tensor:
    """Coefficients float64 [..., N] of the mean u of those of N unit vectors that are valid, with
    these cosines [..., N, N]; zeros where none is.
    """
    count = valid.sum(dim=-1, keepdim=True).clamp(min=1)
    u = valid / count.double()
    length = _length(u, cosines)
    first = valid & (valid.cumsum(dim=-1) == 1)
    u = torch.where(length >= tol, u / length, first.double())
    going = torch.ones_like(length, dtype=torch.bool)
    for _ in range(max_iter):
        cosine = _product(cosines, u).clamp(-1, 1)
        angle = torch.acos(cosine)
        undirected = (angle < tol) | (math.pi - angle < OPPOSITE) | ~valid
        stretch = torch.where(undirected, 0.0, angle / torch.sin(angle)) / count
        tangent = stretch - (stretch * cosine).sum(dim=-1, keepdim=True) * u
        step = _length(tangent, cosines)
        going = going & (step >= tol)
        if not going.any():
            break
        moved = torch.cos(step) * u + torch.sin(step) / step * tangent
        u = torch.where(going, moved / _length(moved, cosines), u)
    return u


def _product(cosines: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    return (cosines @ coefficients[..., None])[..., 0]


def _length(coefficients: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    squares = coefficients * _product(cosines, coefficients)
    return squares.sum(dim=-1, keepdim=True).clamp(min=0).sqrt()
