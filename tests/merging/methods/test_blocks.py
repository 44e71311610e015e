"""Methods that see whole tensors look at them block by block, and that changes nothing."""

import pytest
import torch

from merging.methods.blocks import BLOCK, blocks_of
from merging.methods.selection import Ranking, largest
from tests.merging.methods.one_tensor import merge


def random_tensor(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 14])
def test_blocks_are_the_tensor_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cover every element once and share its memory; there is one of a tensor without any."""
    monkeypatch.setattr("merging.methods.blocks.BLOCK", 7)
    tensor = torch.arange(size).reshape(-1, 1)
    blocks = blocks_of(tensor)
    assert torch.cat(blocks).equal(tensor.reshape(-1))
    assert [len(block) for block in blocks[:-1]] == [7] * (len(blocks) - 1)
    assert blocks[0].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ties", {"density": (0.3, 0.6), "rescale": True}),
        ("ties", {"density": (0.3, 0.6), "rescale": True, "rescale_norm": "l2"}),
        ("ties", {"density": (0.3, 0.6), "rescale": True, "rescale_norm": "linf"}),
        ("breadcrumbs", {"density": (0.5, 0.5), "gamma": (0.1, 0.2), "rescale": True}),
        ("dare_ties", {"density": (0.5, 0.5)}),
        ("della", {"density": (0.5, 0.5), "epsilon": (0.2, 0.3)}),
        ("sce", {"select_topk": 0.4}),
        ("sce", {"select_topk": 0.4, "semantics": "paper"}),
        ("sce", {}),
    ],
)
def test_a_tensor_of_many_blocks_is_merged_as_a_whole(
    method: str, given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the rounding of norms and mean squares, which are summed by blocks."""
    base = random_tensor(30, 20, seed=0)
    sources = [base + 0.1 * random_tensor(30, 20, seed=seed) for seed in (1, 2)]
    whole = merge(method, base, sources, **given)
    assert not whole.equal(base)
    monkeypatch.setattr("merging.methods.blocks.BLOCK", 70)
    monkeypatch.setattr("merging.methods.trims.BLOCK", 70)
    torch.testing.assert_close(merge(method, base, sources, **given), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_largest_of_many_blocks(share: float) -> None:
    """By magnitude and, of bfloat16's many equal ones, the first: what a stable sort gives."""
    values = random_tensor(2 * BLOCK + 5, seed=3)
    values[: BLOCK // 2] = 0
    count = int(share * len(values))
    wanted = torch.zeros(len(values), dtype=torch.bool)
    wanted[values.abs().argsort(descending=True, stable=True)[:count]] = True
    assert largest(values, count).equal(wanted)


def test_ranks_are_exact_to_the_last_bit() -> None:
    """Of numbers that share the upper half of their bits, and of the smallest and largest."""
    tiny, huge = 1e-45, torch.finfo(torch.float32).max
    close = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    values = torch.tensor([0.0, 1.0, -tiny, -huge, -close])
    ranking = Ranking(values, *range(6))
    assert [ranking.kth(k) for k in range(1, 6)] == [
        float(torch.tensor(value)) for value in (huge, close, 1.0, tiny, 0.0)
    ]
