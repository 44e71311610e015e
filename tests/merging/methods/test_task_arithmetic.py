"""Task arithmetic adds weighted deltas to the base; golden values are worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.methods.combination import Combination
from merging.methods.task_arithmetic import task_arithmetic
from tests.merging.methods.one_tensor import values_of


def combine(*weights: float, factor: float = 1.0, normalize: bool = False) -> Combination:
    given = {"weight": weights, "density": (0.5,) * len(weights), "normalize": normalize}
    values = values_of(task_arithmetic, len(weights), lambda_=factor, **given)
    return task_arithmetic.combine(values)


def test_coefficients_are_lambda_times_weight() -> None:
    """The base stays as it is, and each delta gets lambda w."""
    assert combine(0.6, -0.25, factor=2.0) == Combination((1.2, -0.5), 1.0)


def test_normalize_divides_by_the_sum() -> None:
    """1 and 3 of 4, times lambda."""
    assert combine(1.0, 3.0, factor=0.5, normalize=True) == Combination((0.125, 0.375), 1.0)


def test_a_sum_near_zero_does_not_divide() -> None:
    """Below 1e-8 the divisor is 1, as in mergekit."""
    assert combine(1.0, -1.0, normalize=True) == Combination((1.0, -1.0), 1.0)
    assert combine(4e-9, 5e-9, normalize=True) == Combination((4e-9, 5e-9), 1.0)


def test_a_sum_at_the_limit_divides() -> None:
    """From 1e-8 on the sum counts, whatever its sign."""
    assert combine(1e-8, normalize=True).coefficients == pytest.approx((1.0,))
    assert combine(-2.0, normalize=True) == Combination((1.0,), 1.0)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5), st.floats(-3, 3))
def test_it_is_linear_in_lambda_and_weights(weights: list[float], factor: float) -> None:
    """Scaling lambda scales every coefficient, and the base never changes."""
    combination = combine(*weights, factor=factor)
    assert combination.coefficients == pytest.approx([factor * w for w in weights])
    assert combination.base_scale == 1.0
