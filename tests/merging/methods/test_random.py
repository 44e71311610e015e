"""Random numbers are fixed by the seed, the source's content and the tensor's name."""

import pytest
import torch

from merging.methods.random import Random


def test_the_numbers_are_these() -> None:
    """Merges stay what they were: the numbers of a key never change."""
    assert Random(0, "digest", "w").words(4).tolist() == PINNED


PINNED = [13273, 55981, 37487, 23939]


@pytest.mark.parametrize(
    "other", [Random(1, "a", "w"), Random(0, "b", "w"), Random(0, "a", "v"), Random(0, "aw", "")]
)
def test_every_part_of_the_key_counts(other: Random) -> None:
    """Another seed, source or tensor has other numbers."""
    assert Random(0, "a", "w").words(8).tolist() != other.words(8).tolist()


def test_fewer_numbers_are_the_start_of_more() -> None:
    """The numbers are a stream."""
    bits = Random(0, "a", "w").words(9).tolist()
    assert Random(0, "a", "w").words(4).tolist() == bits[:4]


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.25, 0.5, 0.999, 1.0])
def test_elements_are_kept_with_their_probability(p: float) -> None:
    """The share of a million is within five deviations; 0 and 1 are exact."""
    n = 1_000_000
    shape = torch.Size((1000, 1000))
    for probability in (p, torch.full((1000,), p, dtype=torch.float64)):
        kept = Random(3, "a", "w").keep(probability, shape)
        assert kept.shape == shape
        assert abs(int(kept.sum()) - n * p) <= 5 * (n * p * (1 - p)) ** 0.5


def test_each_element_has_its_own_probability() -> None:
    """A tensor of probabilities is spread over the shape."""
    probability = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    kept = Random(0, "a", "w").keep(probability, torch.Size((2, 1000)))
    assert kept.tolist() == [[False] * 1000, [True] * 1000]


def test_small_probabilities_are_not_rounded_away() -> None:
    """Below 2 ** -16, where the first 16 bits of a number do not decide."""
    shape, p = torch.Size((4_000_000,)), 5e-6
    count = sum(int(Random(seed, "a", "w").keep(p, shape).sum()) for seed in range(5))
    assert abs(count - 100) <= 50
