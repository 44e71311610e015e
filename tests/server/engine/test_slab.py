"""The slab: what rows of a step see of the active adapters, step after step."""

from pathlib import Path

import torch

from merging.adapter import Adapter, LowRank
from merging.blend import Blend
from server.engine.kernels import PackedKernel, PlainKernel, can_pack
from server.engine.slab import PACKED_PER_STEP, STEADY_STEPS, ActiveStack, Slab

SHAPES = {f"layers.{i}.{name}": (48, 32) for i in range(PACKED_PER_STEP + 1) for name in ("q", "k")}
SIBLINGS = [list(SHAPES)[i : i + 2] for i in range(0, len(SHAPES), 2)]


def adapter(digest: str, rank: int, dtype: torch.dtype) -> Adapter:
    generator = torch.Generator().manual_seed(rank)

    def factor(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    factors = {m: LowRank(factor(rank, i), factor(o, rank), 0.5) for m, (o, i) in SHAPES.items()}
    return Adapter(digest, factors, None, None, Path(), 0)


def blend(*adapters: Adapter, weight: float = 1.0) -> Blend:
    digest = f"{weight} of {[a.digest for a in adapters]}"
    return Blend(digest, adapters, torch.full((len(adapters), len(SHAPES)), weight))


def delta(active: ActiveStack, x: torch.Tensor, linear: int) -> torch.Tensor:
    """What one linear adds for one row, in float32."""
    inner = active.stack.down(x, None).float() * active.coefficients
    parts = torch.split(inner, active.stack.ranks, dim=-1)
    up = active.stack.up[linear]
    assert up is not None
    return up(parts[linear].to(x.dtype), None).float()


def test_steady_stacks_are_packed_a_few_at_a_time() -> None:
    """Only what did not change for a while is packed, never all at once, and gives the same."""
    slab = Slab(SHAPES, SIBLINGS, torch.bfloat16, torch.device("cpu"))
    rows = [blend(adapter("a", 8, torch.bfloat16))]
    x = torch.randn(1, 32).bfloat16()
    first = slab.activate(rows)
    before = [delta(active, x, linear=1) for active in first.values()]
    for _ in range(STEADY_STEPS - 1):
        slab.activate(rows)
    assert all(isinstance(active.stack.down, PlainKernel) for active in first.values())
    kinds = []
    for _ in range(2):
        active = slab.activate(rows)
        kinds.append(sum(isinstance(a.stack.down, PackedKernel) for a in active.values()))
    packs = can_pack(torch.zeros(1, dtype=torch.bfloat16))
    assert kinds == ([PACKED_PER_STEP, len(SIBLINGS)] if packs else [0, 0])
    for old, now in zip(before, active.values(), strict=True):
        torch.testing.assert_close(delta(now, x, linear=1), old, rtol=2e-2, atol=2e-2)


def test_a_new_adapter_joins_packed_stacks() -> None:
    """An adapter that comes after packing is seen at once, and begins the wait anew."""
    slab = Slab(SHAPES, SIBLINGS, torch.bfloat16, torch.device("cpu"))
    one, other = adapter("a", 8, torch.bfloat16), adapter("b", 4, torch.bfloat16)
    for _ in range(STEADY_STEPS + 2):
        slab.activate([blend(one)])
    x = torch.randn(1, 32).bfloat16()
    (active, *_) = slab.activate([blend(other)]).values()
    assert isinstance(active.stack.down, PlainKernel)
    factor = other.factors["layers.0.k"]
    expected = 0.5 * (x.float() @ factor.a.float().T) @ factor.b.float().T
    torch.testing.assert_close(delta(active, x, linear=1), expected, rtol=3e-2, atol=3e-2)


def test_other_rows_have_other_coefficients() -> None:
    """What was worked out for a step serves the next one only if its rows see the same blends."""
    slab = Slab(SHAPES, SIBLINGS, torch.float32, torch.device("cpu"))
    source = adapter("a", 2, torch.float32)
    one, half = blend(source), blend(source, weight=0.5)

    def coefficients(*rows: Blend) -> list[float]:
        return [float(row[0]) for row in slab.activate(rows)[0].coefficients]

    assert coefficients(one, half) == [0.5, 0.25]
    assert coefficients(one, half) == [0.5, 0.25]
    assert coefficients(half, one) == [0.25, 0.5]
    assert coefficients(half) == [0.25]
    assert coefficients(half, blend(source, weight=2.0)) == [0.25, 1.0]
