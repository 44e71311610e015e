"""How a checkpoint is related to a base, from a sample of their rows."""

from collections.abc import Callable

import pytest
import torch

from merging.relation import NUM_ROWS, NUM_TENSORS, relate
from tests.merging.plans import MemoryWeights

SHAPES = {f"model.layers.{i}.mlp.up_proj.weight": (96, 64) for i in range(6)}


def trained(seed: int = 0) -> dict[str, torch.Tensor]:
    """Matrices whose rows differ in norm, as those of a trained model do."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        * torch.rand(shape[0], 1, generator=generator).add(0.2)
        for name, shape in SHAPES.items()
    }


def changed(
    tensors: dict[str, torch.Tensor], share: float, seed: int = 9
) -> dict[str, torch.Tensor]:
    """Each tensor with noise of this share of its norm."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    return {n: t + share * noise[n] * t.norm() / noise[n].norm() for n, t in tensors.items()}


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_a_fine_tune_is_related(share: float) -> None:
    """The figures of a tuned model are those of the noise in it, and it is taken."""
    base = trained()
    found = relate(MemoryWeights(changed(base, share)), MemoryWeights(base))
    assert found is not None
    assert found.relative_norm == pytest.approx(share, rel=0.05)
    assert found.cosine == pytest.approx((1 + share**2) ** -0.5, rel=0.02)
    assert not found.is_unrelated


@pytest.mark.parametrize(
    "make",
    [
        lambda base: trained(seed=1),
        lambda base: {n: t[:, torch.randperm(t.shape[1])] for n, t in base.items()},
        lambda base: {n: -t for n, t in base.items()},
        lambda base: {n: 0.01 * torch.randn(t.shape) for n, t in base.items()},
    ],
    ids=["another", "permuted", "negated", "small"],
)
def test_another_model_is_not(make: Callable[..., dict[str, torch.Tensor]]) -> None:
    """Weights of another training, in another order, or of any size, have nothing in common."""
    base = trained()
    found = relate(MemoryWeights(make(base)), MemoryWeights(base))
    assert found is not None
    assert found.is_unrelated
    assert found.base_is_trained


def test_of_random_bases_nothing_is_known() -> None:
    """Random numbers have rows of one norm: that two such models differ says nothing."""
    base, other = ({n: torch.randn(s) for n, s in SHAPES.items()} for _ in range(2))
    found = relate(MemoryWeights(other), MemoryWeights(base))
    assert found is not None
    assert found.is_unrelated
    assert not found.base_is_trained


def test_large_noise_on_a_small_base() -> None:
    """A delta larger than the base is no proof: the base is in it all the same."""
    base = trained()
    found = relate(MemoryWeights(changed(base, 1.5)), MemoryWeights(base))
    assert found is not None
    assert found.relative_norm > 1.4
    assert not found.is_unrelated


def test_little_is_read() -> None:
    """However many tensors there are, and however large, only some rows of some are read."""

    class Counting(MemoryWeights):
        def tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.tensors[name]

    read: list[str] = []
    many = {f"model.layers.{i}.up.weight": torch.randn(4 * NUM_ROWS, 32) for i in range(100)}
    relate(Counting(many), MemoryWeights(many))
    assert len(read) == NUM_TENSORS


def test_what_is_not_shared_is_left_out() -> None:
    """Tensors of other shapes and vectors say nothing; without matrices there is no relation."""
    base = {**trained(), "norm.weight": torch.ones(4)}
    other = {n: t[:5] if t.ndim > 1 else t for n, t in base.items()}
    assert relate(MemoryWeights(other), MemoryWeights(base)) is None
    zeros = {n: torch.zeros_like(t) for n, t in base.items()}
    assert relate(MemoryWeights(zeros), MemoryWeights(base)) is None
