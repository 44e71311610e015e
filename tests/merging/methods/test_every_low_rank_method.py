"""What holds for every low-rank method, by what it says of itself; a new one needs no code here."""

from collections.abc import Sequence

import pytest
import torch

from merging.adapter import LowRank
from merging.methods import METHODS
from merging.methods.method import Method, Values
from tests.merging.methods.one_tensor import values_of
from tests.merging.methods.test_every_method import settings

OUT, IN = 12, 9
DIGESTS = ("c", "a", "b")

every_method = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.kind == "low_rank"], ids=lambda m: m.name
)


def factors(count: int, size: float = 1.0) -> list[LowRank]:
    """Of ranks 1, 2, …, with scales of their own."""
    generator = torch.Generator().manual_seed(0)
    return [
        LowRank(
            torch.randn(rank, IN, generator=generator),
            size * torch.randn(OUT, rank, generator=generator),
            1 / rank,
        )
        for rank in range(1, count + 1)
    ]


def dense(factor: LowRank) -> torch.Tensor:
    return factor.scale * factor.b.float() @ factor.a.float()


def merged(
    method: Method,
    given: Sequence[LowRank],
    values: Values,
    seed: int = 0,
    digests: Sequence[str] = DIGESTS,
) -> torch.Tensor:
    made = method.merge_factors(
        given, values, seed=seed, digests=digests[: len(given)], tensor_name="w.weight"
    )
    return dense(made)


def count_of(method: Method) -> int:
    return min(3, method.max_sources or 3)


@every_method
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4])
def test_the_result_is_finite_of_the_shape_of_the_module(method: Method, size: float) -> None:
    """Whatever the size of the deltas, and inputs stay as they are."""
    given, values = factors(count_of(method), size), settings(method, count_of(method))
    before = [(factor.a.clone(), factor.b.clone()) for factor in given]
    result = merged(method, given, values)
    assert result.shape == (OUT, IN)
    assert torch.isfinite(result).all()
    assert bool(result.any()) == bool(size)
    for factor, (a, b) in zip(given, before, strict=True):
        assert torch.equal(factor.a, a)
        assert torch.equal(factor.b, b)


@every_method
def test_the_order_of_sources_does_not_matter(method: Method) -> None:
    """Bit for bit, when each source keeps its digest and its values."""
    count = count_of(method)
    given, values = factors(count), settings(method, count)
    backwards = {n: v[::-1] if isinstance(v, tuple) else v for n, v in values.items()}
    other = merged(method, given[::-1], backwards, digests=DIGESTS[:count][::-1])
    assert torch.equal(merged(method, given, values), other)


@every_method
def test_a_source_at_weight_one_is_that_source(method: Method) -> None:
    """With density 1 and weight 1 (or as many equal sources as the method needs) it comes out."""
    count, factor = method.min_sources, factors(3)[2]
    result = merged(method, [factor] * count, values_of(method, count), digests=["same"] * count)
    torch.testing.assert_close(result, dense(factor), rtol=1e-5, atol=1e-5)


@every_method
def test_random_choices_follow_the_seed_and_others_do_not_look_at_it(method: Method) -> None:
    """The same seed gives the same bits; another one gives others if the method is random."""
    count = count_of(method)
    random = [p for p in method.parameters if "dare_linear" in p.choices]
    values = settings(method, count) | {p.name: "dare_linear" for p in random}
    one, same, other = (merged(method, factors(count), values, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert torch.equal(one, other) != method.is_random
