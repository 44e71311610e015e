"""One tensor, all of it in memory: the reference for every faster way."""

import pytest
import torch

from merging.methods import METHODS
from merging.methods.apply import canonical_order, merge_tensor
from merging.methods.selection import kth_largest
from merging.methods.vectors import gram_of, spread
from tests.merging.methods.one_tensor import values_of


def tensor(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BASE, DELTAS = tensor(6, 8, seed=0), [0.1 * tensor(6, 8, seed=i) for i in (1, 2)]


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_whole_tensors_merge_alike_from_deltas(name: str) -> None:
    """Without a base, the Gram matrix of W0 and the deltas gives what that of W0 + tau gives."""
    method, values = METHODS[name], values_of(METHODS[name], 2)
    whole = [BASE + delta for delta in DELTAS]
    direct = merge_tensor(method, values, None, whole, seed=0, digests=["a", "b"], tensor_name="w")
    combination = method.combine_gram(gram_of(BASE, DELTAS, "all"), values, whole=True)
    merged = combination.base_scale * BASE
    for coefficient, delta in zip(combination.coefficients, DELTAS, strict=True):
        merged = merged + coefficient * delta
    torch.testing.assert_close(merged, direct, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "shape", "count"),
    [("all", (2, 3, 4), 1), ("rows", (2, 3, 4), 6), ("columns", (2, 3, 4), 12),
     ("rows", (5,), 1), ("columns", (5,), 1), ("rows", (), 1), ("columns", (), 1)],
)  # fmt: skip
def test_vectors_of_a_tensor(vectors: str, shape: tuple[int, ...], count: int) -> None:
    """Rows run along the last dimension and columns along the first; a 1-d tensor is one of each.
    Scaling every vector by its own norm squared is undone by its Gram matrix.
    """
    x = tensor(*shape, seed=3)
    gram = gram_of(None, [x], vectors)  # type: ignore[arg-type]
    squares = gram[..., 1, 1]
    assert squares.numel() == count
    coefficient = float(squares) if vectors == "all" else squares
    scaled = x / spread(coefficient, x.shape, vectors)  # type: ignore[arg-type]
    back = gram_of(None, [scaled], vectors)[..., 1, 1]  # type: ignore[arg-type]
    torch.testing.assert_close(back * squares, torch.ones_like(squares), rtol=1e-5, atol=1e-5)
    assert scaled.shape == x.shape


def test_sources_of_one_content_go_by_their_values() -> None:
    """The same digest twice, with two weights: the order is still that of the content."""
    values = {"weight": (0.6, 0.4), "lambda": 1.0}
    assert canonical_order(values, ["same", "same"]) == [1, 0]
    assert canonical_order({"weight": (0.6, 0.4)}, ["a", "b"]) == [0, 1]


def test_a_threshold_of_the_model_replaces_that_of_the_tensor() -> None:
    """TIES over a model of two tensors keeps more of the one that changed more."""
    method = METHODS["ties"]
    values = values_of(method, 1, scope="model", density=(0.25,))
    small, large = 0.01 * tensor(10, seed=1), tensor(10, seed=2)
    (k,) = method.trim.counts(20, **method.trim_values(values, 0))  # type: ignore[union-attr]
    threshold = (kth_largest(torch.cat([small, large]).abs(), k),)
    changed = [
        int(
            merge_tensor(
                method,
                values,
                torch.zeros(10),
                [delta],
                seed=0,
                digests=["a"],
                tensor_name="w",
                thresholds=[threshold],
            ).count_nonzero()
        )
        for delta in (small, large)
    ]
    assert changed == [0, 5]
