"""Gram matrices of adapters from their factors, against dense deltas."""

from pathlib import Path

import pytest
import torch

from merging.adapter import Adapter, LowRank
from merging.base import Base, Linear
from merging.gram import GramCache, adapter_gram
from merging.methods.vectors import gram_of
from merging.source import AdapterDeltas

OUT, IN = 600, 33


def adapter(seed: int, rank: int, *modules: str) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        module: LowRank(
            torch.randn(rank, IN, generator=generator).bfloat16(),
            torch.randn(OUT, rank, generator=generator).bfloat16(),
            0.5 + seed,
        )
        for module in modules
    }
    return Adapter(f"digest {seed}", factors, None, None, Path("x"), 0)


ADAPTERS = [adapter(1, 2, "m", "n"), adapter(2, 5, "m"), adapter(3, 3, "n")]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_the_dense_computation(transposed: bool, dtype: torch.dtype) -> None:
    """Adapters of unequal rank and scale, one that does not touch the module, and a base that keeps
    its weight [in, out], as GPT-2 does.
    """
    w0 = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)).to(dtype)
    own = w0.T if transposed else w0
    base = Base("base", "digest", "float32", 1, {"m": Linear(OUT, IN, transposed)})
    deltas = [AdapterDeltas(a, base).delta("m.weight", own) for a in ADAPTERS]
    expected = gram_of(own.float(), deltas, "all")
    gram = adapter_gram(ADAPTERS, "m", own.T if transposed else own)
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-2)
    assert gram.equal(gram.T)
    assert not gram[3].any()
    assert gram[0, 0] == pytest.approx(float(w0.double().square().sum()), rel=1e-12)


def test_no_adapter_leaves_the_base_alone() -> None:
    """The matrix is that of W0."""
    gram = adapter_gram([], "m", torch.full((2, 3), 2.0))
    assert gram.tolist() == [[24.0]]


def test_the_cache_computes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By module and the adapters' content; what it gives may be changed; the oldest are dropped."""
    calls = []
    monkeypatch.setattr(
        "merging.gram.adapter_gram", lambda *a: calls.append(a[1]) or adapter_gram(*a)
    )
    cache, w0 = GramCache(max_entries=2), torch.ones(OUT, IN)
    first = cache(ADAPTERS, "m", w0)
    expected = first.clone()
    first.zero_()
    assert cache(ADAPTERS, "m", w0).equal(expected)
    assert calls == ["m"]
    cache(ADAPTERS[:1], "m", w0)
    cache(ADAPTERS, "n", w0)
    assert calls == ["m", "m", "n"]
    assert len(cache) == 2
    cache(ADAPTERS, "m", w0)
    assert calls == ["m", "m", "n", "m"]
