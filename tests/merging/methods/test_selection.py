"""The largest elements: exactly k, nested, and without regard for what is equal."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging.methods.selection import SMALL, kth_largest, largest


@pytest.fixture(autouse=True, params=[0, SMALL], ids=["counted", "partitioned"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are partitioned and large ones counted by bits; the same holds for both."""
    monkeypatch.setattr("merging.methods.selection.SMALL", request.param)


numbers = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e30]), min_size=1, max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers, st.data())
def test_exactly_k_are_kept_and_none_beats_them(values: list[float], data: st.DataObject) -> None:
    """Whatever is equal, k are kept, and no dropped one is larger than a kept one."""
    k = data.draw(st.integers(0, len(values)))
    tensor = torch.tensor(values)
    kept = largest(tensor, k)
    assert int(kept.sum()) == k
    if 0 < k < len(values):
        assert tensor[kept].min() >= tensor[~kept].max()
        assert kth_largest(tensor, k) == float(tensor[kept].min())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers, st.data())
def test_masks_for_smaller_k_are_part_of_larger_ones(
    values: list[float], data: st.DataObject
) -> None:
    """So that the difference of two has exactly the difference of their k."""
    k = data.draw(st.integers(0, len(values)))
    tensor = torch.tensor(values)
    assert not (largest(tensor, data.draw(st.integers(0, k))) & ~largest(tensor, k)).any()


def test_the_first_of_equal_elements_is_kept() -> None:
    """In the order of memory, in any shape."""
    kept = largest(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), 3)
    assert kept.tolist() == [[True, True], [True, False]]


def test_none_of_them_is_beyond_infinity() -> None:
    """k = 0 has a threshold that nothing reaches."""
    assert kth_largest(torch.tensor([1.0]), 0) == math.inf


@pytest.mark.parametrize("shape", [(), (1,), (0,)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    """0-d and empty tensors keep their shape."""
    assert largest(torch.ones(shape), 0).shape == shape


def test_small_tensors_are_not_counted_by_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cores of a low-rank merge and the norms of a model are many and small."""
    monkeypatch.setattr("merging.methods.selection.SMALL", SMALL)
    monkeypatch.delattr("merging.methods.selection.UpperHalves")
    values = torch.randn(3, 500)
    assert int(largest(values, 700).sum()) == 700
    with pytest.raises(NameError):
        largest(torch.randn(SMALL + 1), 700)
