"""Random numbers are fixed by the seed, the source's content and the tensor's name."""

import pytest
import torch

from merging.methods.random import Random


def test_the_numbers_are_these() -> None:
    """Merges stay what they were: the numbers of a key never change."""
    assert Random(0, "digest", "w").bits(4).tolist() == PINNED


PINNED = [3668784089, 1568903791, 2862151592, 2719520125]


@pytest.mark.parametrize(
    "other", [Random(1, "a", "w"), Random(0, "b", "w"), Random(0, "a", "v"), Random(0, "aw", "")]
)
def test_every_part_of_the_key_counts(other: Random) -> None:
    """Another seed, source or tensor has other numbers."""
    assert Random(0, "a", "w").bits(8).tolist() != other.bits(8).tolist()


def test_fewer_numbers_are_the_start_of_more() -> None:
    """The numbers are a stream."""
    bits = Random(0, "a", "w").bits(9).tolist()
    assert Random(0, "a", "w").bits(4).tolist() == bits[:4]


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.25, 0.5, 0.999, 1.0])
def test_elements_are_kept_with_their_probability(p: float) -> None:
    """The share of a million is within five deviations; 0 and 1 are exact."""
    n = 1_000_000
    shape = torch.Size((1000, 1000))
    for probability in (p, torch.full((n,), p)):
        kept = Random(3, "a", "w").keep(probability, shape)
        assert kept.shape == shape
        assert abs(int(kept.sum()) - n * p) <= 5 * (n * p * (1 - p)) ** 0.5


def test_each_element_has_its_own_probability() -> None:
    """A tensor of probabilities is by element."""
    probability = torch.tensor([0.0, 1.0]).repeat(500)
    assert (
        Random(0, "a", "w").keep(probability, torch.Size((1000,))).tolist() == [False, True] * 500
    )
