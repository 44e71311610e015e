"""Bases of core spaces are found once for the same adapters."""

import pytest
import torch

from merging.adapter import LowRank
from merging.core_bases import CoreBases
from merging.methods.core_basis import CoreBasis, core_basis

FACTORS = [LowRank(torch.randn(2, 5), torch.randn(6, 2), 1.0) for _ in range(2)]


def test_the_cache_computes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By tensor and the adapters' content; beyond its bytes the oldest are dropped."""
    calls = []

    def counted(factors: list[LowRank]) -> CoreBasis:
        calls.append(len(factors))
        return core_basis(factors)

    monkeypatch.setattr("merging.core_bases.core_basis", counted)
    size = core_basis(FACTORS).num_bytes
    assert size == 2 * 4 * 4 * 8 + 2 * 4 * 4 * 4
    bases = CoreBases(max_bytes=2 * size)
    first = bases(FACTORS, ["a", "b"], "m.weight")
    assert bases(FACTORS, ["a", "b"], "m.weight") is first
    assert calls == [2]
    bases(FACTORS, ["a", "c"], "m.weight")
    bases(FACTORS, ["a", "c"], "n.weight")
    assert calls == [2, 2, 2]
    bases(FACTORS, ["a", "b"], "m.weight")
    assert calls == [2, 2, 2, 2]
