"""The small space that the low-rank deltas of one module share, and the way into it and out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from merging.adapter import LowRank

NOTHING = 1e-9
"""Directions with a smaller share of the largest singular value are rounding, and left out."""


@dataclass(frozen=True, slots=True, eq=False)
class CoreBasis:
    """The space of some factors, whose ranks sum to K: `U = B left` and `V^T = right A`, with all B
    side by side and all A on top of each other, have orthonormal columns and rows.

    `left`: float64 [K, R]; `right`: float64 [S, K]. `cores`: for each of the factors its delta in
    the space, `scale * U^T B_i A_i V`, float32 [R, S]; nothing is lost. All are small, whatever the
    size of the module.
    """

    left: torch.Tensor
    right: torch.Tensor
    cores: tuple[torch.Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.left, self.right, *self.cores))

    def expand(self, core: torch.Tensor, factors: Sequence[LowRank]) -> LowRank:
        """A core back in the module's own space, `U M V^T`: float32 factors of rank min(R, S).

        `factors`: those that the basis is of, in the same order.
        """
        left, right = self.left, self.right
        if left.shape[1] < right.shape[0]:
            right = core.double() @ right
        else:
            left = left @ core.double()
        b, a = _stacked(factors)
        return LowRank(a=(right @ a).float(), b=(b @ left).float(), scale=1.0)


Bases = Callable[[Sequence[LowRank], Sequence[str], str], CoreBasis]
"""Gives the basis of some factors: those of the adapters with these digests, in the same order, of
the tensor of a name.
"""


def new_basis(factors: Sequence[LowRank], digests: Sequence[str], tensor_name: str) -> CoreBasis:
    """`Bases` that keeps none."""
    return core_basis(factors)


def core_basis(factors: Sequence[LowRank]) -> CoreBasis:
    """The reference bases of Core Space (2509.17786): left singular vectors of all `B_i` side by
    side, and right singular vectors of all `A_i` on top of each other.

    They span every delta, so `U U^T B_i A_i V V^T = B_i A_i`. The factors alone decide.
    """
    b, a = _stacked(factors)
    left, inner_b = _singular(b)  # B = U inner_b
    right, inner_a = _singular(a.T)  # A^T = V inner_a
    ranks = [factor.rank for factor in factors]
    parts = (torch.split(inner, ranks, dim=1) for inner in (inner_b, inner_a))
    cores = tuple(
        (factor.scale * (one @ other.T)).float()
        for one, other, factor in zip(*parts, factors, strict=True)
    )
    return CoreBasis(left, right.T.contiguous(), cores)


def _stacked(factors: Sequence[LowRank]) -> tuple[torch.Tensor, torch.Tensor]:
    """All B side by side, and all A on top of each other, float64."""
    b = torch.cat([factor.b.double() for factor in factors], dim=1)
    return b, torch.cat([factor.a.double() for factor in factors], dim=0)


def _singular(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What makes the left singular vectors of a matrix, `vectors = matrix @ first`, and what the
    matrix is in them, `matrix = vectors @ second`.
    """
    _, values, others = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > NOTHING * values.max()
    values, others = values[kept], others[kept]
    return others.T / values, values[:, None] * others
