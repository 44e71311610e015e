"""An adapter of another base, made of one: its numbers, in shuffled channels.

What was trained on a base fits the directions that matter in it, and changes what it says many
times as much as the same numbers do in others.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch

from merging.adapter import Adapter, LowRank
from merging.base import Base, Linear

READS = re.compile(r"(^|[._])(q|k|v|query|key|value)(_|\.|$)")
"""Square layers with such a name read from between the blocks; others write there."""


def shuffled(adapter: Adapter, base: Base, seed: int) -> Adapter:
    """The adapter with the channels between the base's blocks in another order, the same in all
    layers. `seed` says which.
    """
    width = _width(base.linears.values())
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    factors = {
        module: _moved(module, factor, base.linears[module], order)
        for module, factor in adapter.factors.items()
    }
    return replace(adapter, digest=f"{adapter.digest} shuffled {seed}", factors=factors)


def _width(linears: Iterable[Linear]) -> int:
    """Channels between the blocks: every block reads as many and writes as many."""
    sizes = Counter(n for linear in linears for n in (linear.in_features, linear.out_features))
    return max(sizes, key=lambda size: sizes[size])


def _moved(module: str, factor: LowRank, linear: Linear, order: torch.Tensor) -> LowRank:
    reads, writes = (n == len(order) for n in (linear.in_features, linear.out_features))
    if reads and writes:
        reads = READS.search(module.rpartition(".")[2]) is not None
        writes = not reads
    a = factor.a[:, order] if reads else factor.a
    b = factor.b[order] if writes else factor.b
    return LowRank(a, b, factor.scale)
