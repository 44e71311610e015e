"""Core Space merges adapters losslessly in a space as small as the sum of their ranks."""

import pytest
import torch

from merging.adapter import LowRank
from merging.methods.core_basis import core_basis
from merging.methods.core_space import core_space
from tests.merging.methods.one_tensor import values_of

OUT, IN = 12, 9


def factor(rank: int, seed: int, scale: float = 2.0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, IN, generator=generator)
    return LowRank(a, torch.randn(OUT, rank, generator=generator), scale)


def dense(low_rank: LowRank) -> torch.Tensor:
    return low_rank.scale * low_rank.b.float() @ low_rank.a.float()


FACTORS = [factor(2, 0), factor(3, 1, 0.5)]


def merge(
    factors: list[LowRank], *, seed: int = 0, digests: list[str] | None = None, **given: object
) -> LowRank:
    names = [str(i) for i in range(len(factors))] if digests is None else digests
    values = values_of(core_space, len(factors), **given)
    return core_space.merge_factors(factors, values, seed=seed, digests=names, tensor_name="w")


def axes(factors: list[LowRank]) -> tuple[torch.Tensor, torch.Tensor]:
    """U [out, R] and V^T [S, in] of Core Space, float64."""
    basis = core_basis(factors)
    b, a = torch.cat([f.b for f in factors], dim=1), torch.cat([f.a for f in factors])
    return b.double() @ basis.left, basis.right @ a.double()


@pytest.mark.parametrize("factors", [FACTORS, [factor(6, 2), factor(6, 3)]])
def test_the_way_in_and_out_loses_nothing(factors: list[LowRank]) -> None:
    """Every delta comes back, also where the ranks sum to more than the module has. A core is the
    delta along orthonormal axes.
    """
    basis, (u, v) = core_basis(factors), axes(factors)
    assert u.shape[1] <= min(OUT, sum(f.rank for f in factors))
    for axis in (u.T, v):
        torch.testing.assert_close(axis @ axis.T, torch.eye(len(axis), dtype=torch.float64))
    for each, core in zip(factors, basis.cores, strict=True):
        back = dense(basis.expand(core, factors))
        torch.testing.assert_close(back, dense(each), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(core, (u.T @ dense(each).double() @ v.T).float())


def test_with_task_arithmetic_inside_it_is_task_arithmetic() -> None:
    """lambda times the weighted sum of the deltas."""
    result = merge(FACTORS, weight=(0.7, -0.2), lambda_=0.5, inside="task_arithmetic")
    wanted = 0.5 * (0.7 * dense(FACTORS[0]) - 0.2 * dense(FACTORS[1]))
    torch.testing.assert_close(dense(result), wanted, rtol=1e-5, atol=1e-5)
    assert result.rank == 5


def test_ties_inside_works_on_the_cores() -> None:
    """Of two equal adapters and their opposite, whose directions are shared, the majority stays."""
    twice, opposite = factor(2, 0), LowRank(factor(2, 0).a, factor(2, 0).b, -2.0)
    result = merge([twice, twice, opposite], weight=(1.0, 1.0, 1.0), inside="ties", normalize=True)
    torch.testing.assert_close(dense(result), dense(twice), rtol=1e-5, atol=1e-5)
    assert result.rank == 2


@pytest.mark.parametrize("inside", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_one_adapter_comes_out_whole(inside: str) -> None:
    """At weight 1 and density 1."""
    result = merge(FACTORS[:1], inside=inside)
    torch.testing.assert_close(dense(result), dense(FACTORS[0]), rtol=1e-5, atol=1e-5)


def test_density_trims_the_core() -> None:
    """Half of a 5 by 5 core is kept: 12 of its elements, the largest."""
    result = merge(FACTORS[:1] * 1 + FACTORS[1:], weight=(1.0, 0.0), density=(0.48, 1.0))
    u, v = axes(FACTORS)
    core, wanted = u.T @ dense(result).double() @ v.T, core_basis(FACTORS).cores[0].double()
    kept = core.abs() > 1e-5
    assert int(kept.sum()) == 12
    torch.testing.assert_close(core[kept], wanted[kept], rtol=1e-4, atol=1e-4)
    assert wanted[kept].abs().min() >= wanted[~kept].abs().max()


def test_an_adapter_of_zeros_adds_nothing() -> None:
    """Untrained adapters have zeros for B; all of them give a delta of zero."""
    empty = LowRank(FACTORS[0].a, torch.zeros(OUT, 2), 1.0)
    assert not dense(merge([empty, empty])).any()
