"""An adapter's numbers in shuffled channels."""

from pathlib import Path

import torch

from merging.adapter import Adapter, LowRank
from merging.base import Base, Linear
from merging.shuffled import shuffled

WIDTH = 8
LINEARS = {
    "model.layers.0.self_attn.q_proj": Linear(WIDTH, WIDTH),
    "model.layers.0.self_attn.v_proj": Linear(4, WIDTH),
    "model.layers.0.self_attn.o_proj": Linear(WIDTH, WIDTH),
    "model.layers.0.mlp.up_proj": Linear(12, WIDTH),
    "model.layers.0.mlp.down_proj": Linear(WIDTH, 12),
}
BASE = Base("tiny", "sha256:0", "float32", 1, LINEARS)


def adapter() -> Adapter:
    factors = {
        name: LowRank(torch.randn(2, own.in_features), torch.randn(own.out_features, 2), 0.5)
        for name, own in LINEARS.items()
    }
    return Adapter("sha256:a", factors, None, None, Path("a"), 0)


def test_channels_between_the_blocks_are_moved() -> None:
    """What reads there has its inputs shuffled, what writes there its outputs, in one order; what
    is inside the blocks stays.
    """
    own = adapter()
    other = shuffled(own, BASE, 3)
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(3))
    for name, factor in own.factors.items():
        moved, reads = other.factors[name], name.endswith(("q_proj", "v_proj", "up_proj"))
        assert torch.equal(moved.a, factor.a[:, order] if reads else factor.a)
        assert torch.equal(moved.b, factor.b if reads else factor.b[order])
        assert moved.scale == factor.scale


def test_it_is_another_adapter() -> None:
    """Its digest is its own, so that nothing of the one is taken for the other's."""
    own = adapter()
    digests = {own.digest, shuffled(own, BASE, 0).digest, shuffled(own, BASE, 1).digest}
    assert len(digests) == 3
