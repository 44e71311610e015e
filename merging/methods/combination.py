"""A combination of a base's tensor and deltas: what linear and geometric methods make of them."""

import math
from dataclasses import dataclass

import torch

Coefficient = float | torch.Tensor
"""A number, or float64 [vectors] with one for each row or column of the tensor."""


@dataclass(frozen=True, slots=True)
class Combination:
    """What a method makes of one tensor: `base_scale * W0 + sum_i coefficients[i] * tau_i`.

    `coefficients`: one per source, in the order of the method's arguments. `tau_i` is what source
    i adds to the base's tensor `W0`.
    """

    coefficients: tuple[Coefficient, ...]
    base_scale: Coefficient = 1.0


def whole_gram(gram: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of the whole vectors `x_i = W0 + tau_i`, with zeros for the base.

    `gram`: float64 [..., N+1, N+1] of W0 and the deltas.
    """
    base, cross = gram[..., :1, :1], gram[..., 0, 1:]
    whole = torch.zeros_like(gram)
    whole[..., 1:, 1:] = gram[..., 1:, 1:] + cross[..., None, :] + cross[..., :, None] + base
    return whole


def merge_base(combination: Combination) -> Combination:
    """A combination of the whole vectors `x_i = W0 + tau_i` as one of W0 and the deltas.

    The base's share is the sum of the coefficients.
    """
    coefficients = combination.coefficients
    if any(isinstance(c, torch.Tensor) for c in coefficients):
        total: Coefficient = torch.stack([torch.as_tensor(c) for c in coefficients]).sum(dim=0)
    else:
        total = math.fsum(float(c) for c in coefficients)
    return Combination(coefficients, base_scale=total)


def combined(coefficients: torch.Tensor, base_scale: torch.Tensor | float = 1.0) -> Combination:
    """A Combination of float64 [..., N] coefficients: floats if there are no leading dimensions."""
    if coefficients.ndim == 1:
        return Combination(tuple(coefficients.tolist()), float(base_scale))
    scale = base_scale if isinstance(base_scale, torch.Tensor) else torch.as_tensor(base_scale)
    return Combination(coefficients.unbind(-1), scale.double().expand(coefficients.shape[:-1]))
