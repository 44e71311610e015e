"""The small space that the low-rank deltas of one module share, and the way into it and out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from merging.adapter import LowRank

NOTHING = 1e-9
"""Directions with a smaller share of the largest singular value are rounding, and left out."""


@dataclass(frozen=True, slots=True, eq=False)
class CoreBasis:
    """Orthonormal columns of outputs, `u` float64 [out_features, R], and inputs, `v` float64
    [in_features, S]. R and S are at most the sum of the ranks.
    """

    u: torch.Tensor
    v: torch.Tensor

    def core(self, factor: LowRank) -> torch.Tensor:
        """A delta in the shared space, `scale * U^T B A V`: float32 [R, S]; nothing is lost."""
        left, right = self.u.T @ factor.b.double(), factor.a.double() @ self.v
        return (factor.scale * (left @ right)).float()

    def expand(self, core: torch.Tensor) -> LowRank:
        """A core back in the module's own space, `U M V^T`: float32 factors of rank min(R, S)."""
        b, a = self.u, self.v.T
        if b.shape[1] < a.shape[0]:
            a = core.double() @ a
        else:
            b = b @ core.double()
        return LowRank(a=a.float().contiguous(), b=b.float(), scale=1.0)


def core_basis(factors: Sequence[LowRank]) -> CoreBasis:
    """The reference bases of Core Space (2509.17786): left singular vectors of all `B_i` side by
    side, and right singular vectors of all `A_i` on top of each other.

    They span every delta, so `U U^T B_i A_i V V^T = B_i A_i`.
    """
    b = torch.cat([factor.b.double() for factor in factors], dim=1)
    a = torch.cat([factor.a.double() for factor in factors], dim=0)
    return CoreBasis(_left_singular(b), _left_singular(a.T))


def _left_singular(matrix: torch.Tensor) -> torch.Tensor:
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    kept: torch.Tensor = vectors[:, values > NOTHING * values.max()]
    return kept
