"""Linear is the weighted mean; golden values are worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.errors import PlanError
from merging.methods.combination import Combination
from merging.methods.linear import linear


def combine(*weights: float, normalize: bool = True) -> Combination:
    return linear.combine({"weight": weights, "normalize": normalize})


def test_weights_are_divided_by_their_sum() -> None:
    """1, 2 and 5 of 8."""
    assert combine(1.0, 2.0, 5.0) == Combination((0.125, 0.25, 0.625), 1.0)


def test_negative_weights_take_part_in_the_sum() -> None:
    """3 and -1 sum to 2."""
    assert combine(3.0, -1.0) == Combination((1.5, -0.5), 1.0)


def test_without_normalize_the_base_is_scaled_by_the_sum() -> None:
    """0.3 x1 + 0.4 x2 has 0.7 of the base in it."""
    combination = combine(0.3, 0.4, normalize=False)
    assert combination.coefficients == (0.3, 0.4)
    assert combination.base_scale == pytest.approx(0.7, abs=1e-15)


def test_without_normalize_a_sum_of_one_leaves_the_base() -> None:
    """Ten times 0.1 is exactly 1: the sum does not add up rounding."""
    assert combine(*[0.1] * 10, normalize=False).base_scale == 1.0


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (0.1, 0.2, -0.3)])
def test_a_sum_of_zero_has_no_mean(weights: tuple[float, ...]) -> None:
    """Weights that cancel, up to rounding, are refused instead of blown up."""
    with pytest.raises(PlanError, match="sum to 0"):
        combine(*weights)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_normalized_coefficients_sum_to_one(weights: list[float]) -> None:
    """The mean of models is a mean: shares add up to 1."""
    assert sum(combine(*weights).coefficients) == pytest.approx(1.0)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_the_scale_of_weights_does_not_matter(weights: list[float], factor: float) -> None:
    """Normalized weights are ratios."""
    scaled = combine(*(factor * w for w in weights)).coefficients
    assert scaled == pytest.approx(combine(*weights).coefficients)
