"""The vectors of a tensor that geometric methods combine, and the Gram matrices of them."""

from collections.abc import Sequence

import torch

from merging.methods.combination import Coefficient
from merging.methods.method import Vectors


def gram_of(
    base: torch.Tensor | None, deltas: Sequence[torch.Tensor], vectors: Vectors
) -> torch.Tensor:
    """Inner products of a base's tensor (zeros if None) and deltas, all of one shape.

    float64 [N+1, N+1] of the flattened tensors, or [rows or columns, N+1, N+1].
    """
    first = torch.zeros_like(deltas[0]) if base is None else base
    stack = torch.stack([_split(tensor, vectors) for tensor in (first, *deltas)], dim=1).double()
    gram = stack @ stack.transpose(1, 2)
    return gram[0] if vectors == "all" else gram


def spread(coefficient: Coefficient, shape: torch.Size, vectors: Vectors) -> float | torch.Tensor:
    """A coefficient of every row or column as float32 that broadcasts over a tensor."""
    if not isinstance(coefficient, torch.Tensor):
        return coefficient
    if vectors == "columns" and len(shape) > 1:
        return coefficient.float().reshape(shape[1:])
    return coefficient.float().reshape(*shape[:-1], 1) if shape else coefficient.float()[0]


def _split(tensor: torch.Tensor, vectors: Vectors) -> torch.Tensor:
    """The vectors of a tensor, [vectors, elements of one]."""
    if vectors == "all" or tensor.ndim < 2:
        return tensor.reshape(1, -1)
    if vectors == "columns":
        return tensor.movedim(0, -1).reshape(-1, tensor.shape[0])
    return tensor.reshape(-1, tensor.shape[-1])
