"""Statistics against closed forms and published values; intervals cover as they claim."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from ensemble.errors import StatisticsError
from ensemble.statistics import (
    Interval,
    clustered_error,
    difference_interval,
    mcnemar,
    mean_interval,
    retention,
    tango,
    wilson,
    worst_prompts,
)

Array = npt.NDArray[np.float64]
REPEATS = 200


def outcomes(both: int, candidate_only: int, reference_only: int, neither: int) -> list[list[int]]:
    """Right-or-wrong scores of a candidate and a reference with these counts."""
    cells = [(1, 1, both), (1, 0, candidate_only), (0, 1, reference_only), (0, 0, neither)]
    return [[cell[side] for cell in cells for _ in range(cell[2])] for side in (0, 1)]


def coverage(draw: Callable[[np.random.Generator], Interval | None], truth: float) -> float:
    """The share of 200 intervals that hold the truth."""
    found = [draw(np.random.default_rng(seed)) for seed in range(REPEATS)]
    assert all(interval is not None for interval in found)
    return sum(i.low <= truth <= i.high for i in found if i is not None) / REPEATS


def test_the_bootstrap_of_a_normal_sample_is_students_interval() -> None:
    """For 400 normal values both are mean ± t s / sqrt(n)."""
    sample = np.random.default_rng(1).normal(3.0, 2.0, 400)
    half = stats.t.ppf(0.975, 399) * sample.std(ddof=1) / 20
    for method in ("bca", "percentile"):
        found = mean_interval(sample, method=method, num_resamples=10_000)
        assert found.estimate == pytest.approx(sample.mean())
        assert found.low == pytest.approx(sample.mean() - half, abs=0.02)
        assert found.high == pytest.approx(sample.mean() + half, abs=0.02)


def test_a_small_sample_gets_students_width() -> None:
    """With 10 values the interval is about t's, and not the plain bootstrap's, a fifth narrower."""
    sample = np.random.default_rng(2).normal(0.0, 1.0, 10)
    found = mean_interval(sample, method="percentile", num_resamples=20_000)
    expected = 2 * stats.t.ppf(0.975, 9) * sample.std(ddof=1) / math.sqrt(10)
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


def test_bca_leans_with_the_skew() -> None:
    """Of a right-skewed sample the upper arm is longer, and longer than the percentile's."""
    sample = np.random.default_rng(3).exponential(1.0, 30)
    bca = mean_interval(sample, method="bca", num_resamples=10_000)
    plain = mean_interval(sample, method="percentile", num_resamples=10_000)
    assert bca.high - bca.estimate > bca.estimate - bca.low
    assert bca.high > plain.high


def test_the_bootstrap_is_deterministic() -> None:
    """The same seed gives the same interval, another seed another one."""
    sample = np.random.default_rng(4).normal(size=50)
    assert mean_interval(sample, seed=7) == mean_interval(sample, seed=7)
    assert mean_interval(sample, seed=7) != mean_interval(sample, seed=8)


def test_the_bootstrap_leaves_global_randomness_alone() -> None:
    """No module state: numpy's global generator is neither read nor moved."""
    np.random.seed(0)
    first = np.random.random()
    np.random.seed(0)
    mean_interval([1.0, 2.0, 4.0])
    assert np.random.random() == first


def test_equal_values_have_no_width_and_one_value_no_bounds() -> None:
    """Without spread there is nothing to resample; of one prompt nothing is known."""
    assert mean_interval([0.3] * 5) == Interval(0.3, 0.3, 0.3, 0.95, "bca")
    one = mean_interval([0.3])
    assert (one.low, one.estimate, one.high) == (-math.inf, 0.3, math.inf)


def test_a_wider_level_is_a_wider_interval() -> None:
    """99 % holds 95 %, which holds 80 %."""
    sample = np.random.default_rng(5).normal(size=40)
    widths = [(i := mean_interval(sample, level=level)).high - i.low for level in (0.8, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3


@pytest.mark.parametrize("n", [12, 60])
def test_the_bootstrap_covers_as_it_claims(n: int) -> None:
    """Of 200 intervals for a skewed mean about 95 % hold it; 3 standard errors are 4.6 points."""

    def draw(rng: np.random.Generator) -> Interval:
        return mean_interval(rng.gamma(4.0, 0.25, n), num_resamples=1000)

    assert 0.90 <= coverage(draw, 1.0) <= 0.99


def test_paired_differences_cover_a_planted_one() -> None:
    """Losses that differ by 0.03 on average, prompts that differ by much more: pairing finds it."""

    def draw(rng: np.random.Generator) -> Interval:
        reference = rng.gamma(4.0, 0.5, 50)
        return difference_interval(reference + rng.normal(0.03, 0.05, 50), reference)

    assert 0.90 <= coverage(draw, 0.03) <= 0.99
    found = draw(np.random.default_rng(0))
    assert found.low > 0
    assert found.method == "bca"


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_tango_covers_a_planted_difference(shift: float) -> None:
    """Right or wrong on 40 prompts, paired: about 95 % of intervals hold the true difference."""

    def draw(rng: np.random.Generator) -> Interval:
        luck = rng.random(40)
        reference = (luck < 0.6).astype(float)
        moved = np.where(rng.random(40) < 0.8, luck, rng.random(40))
        return difference_interval((moved < 0.6 + shift).astype(float), reference)

    assert 0.90 <= coverage(draw, shift) <= 1.0
    assert draw(np.random.default_rng(0)).method == "tango"


def test_tango_without_a_difference_is_z_squared_over_n_plus_z_squared() -> None:
    """Where nothing differs the bound is z²/(n + z²): at n = 100, 3.8415 / 103.8415."""
    same = [1.0] * 60 + [0.0] * 40
    found = tango(same, same)
    assert found.estimate == 0
    assert found.high == pytest.approx(3.841459 / 103.841459, abs=1e-6)
    assert found.low == pytest.approx(-found.high, abs=1e-6)


def test_tango_bounds_are_what_its_test_just_rejects() -> None:
    """At a bound the score statistic (b - c - nd) / sqrt(n (2 q + d (1 - d))) is ±1.96, where q is
    the maximum-likelihood share of reference-only prompts: found here by maximising.
    """
    b, c, n = 7, 3, 50
    found = tango(*outcomes(25, b, c, 15))
    for bound, sign in ((found.low, 1), (found.high, -1)):
        grid = np.linspace(max(0.0, -bound), (1 - bound) / 2, 200_001)[1:-1]
        likelihood = c * np.log(grid) + b * np.log(grid + bound)
        q = grid[np.nanargmax(likelihood + (n - b - c) * np.log(1 - 2 * grid - bound))]
        score = (b - c - n * bound) / math.sqrt(n * (2 * q + bound * (1 - bound)))
        assert score == pytest.approx(sign * 1.959964, abs=1e-3)


@pytest.mark.parametrize("counts", [(0, 10, 0, 0), (0, 0, 10, 0), (10, 0, 0, 0), (0, 5, 5, 0)])
def test_tango_stays_within_its_range(counts: tuple[int, int, int, int]) -> None:
    """Even where all prompts say the same the bounds lie in [-1, 1], around the estimate."""
    found = tango(*outcomes(*counts))
    assert -1 <= found.low < found.high <= 1
    assert found.low <= found.estimate <= found.high


def test_swapping_the_two_mirrors_the_interval() -> None:
    """The difference changes sign, and so do its bounds."""
    candidate, reference = outcomes(20, 8, 3, 9)
    one, other = tango(candidate, reference), tango(reference, candidate)
    assert one.low == pytest.approx(-other.high, abs=1e-6)
    assert one.high == pytest.approx(-other.low, abs=1e-6)


def test_mcnemar_by_hand() -> None:
    """6 prompts against 1: 2 (1 + 7) / 2^7 = 0.125."""
    found = mcnemar(*outcomes(10, 6, 1, 4))
    assert (found.num_candidate_only, found.num_reference_only) == (6, 1)
    assert found.p_value == pytest.approx(0.125)


@pytest.mark.parametrize("counts", [(5, 3, 3, 0), (9, 0, 0, 4)])
def test_mcnemar_without_a_lead_is_one(counts: tuple[int, int, int, int]) -> None:
    """As many one way as the other, or none at all: nothing speaks for a difference."""
    assert mcnemar(*outcomes(*counts)).p_value == 1.0


def test_mcnemar_holds_its_level() -> None:
    """Where nothing differs at most 5 % of p-values are below 0.05: an exact test never exceeds."""
    rng = np.random.default_rng(6)
    found = [mcnemar(*(rng.random((2, 40)) < 0.5).astype(float)).p_value for _ in range(REPEATS)]
    assert np.mean(np.array(found) < 0.05) <= 0.05 + 0.046


def test_wilson_by_hand() -> None:
    """8 of 10: centre (0.8 + z²/20) / (1 + z²/10), the values of Newcombe's tables."""
    found = wilson(8, 10)
    assert found.estimate == 0.8
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_at_the_ends() -> None:
    """None of n is 0 to z²/(n + z²), all of n its mirror; no prompt at all is an error."""
    assert wilson(0, 20).low == pytest.approx(0.0, abs=1e-12)
    assert wilson(0, 20).high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
    assert wilson(20, 20).low == pytest.approx(20 / 23.841459, abs=1e-6)
    with pytest.raises(StatisticsError, match="at least one prompt"):
        wilson(0, 0)


def test_retention_by_hand() -> None:
    """12 right of the specialist's 16 is 0.75."""
    found = retention(*outcomes(12, 0, 4, 4))
    assert found is not None
    assert found.estimate == pytest.approx(0.75)
    assert found.low < 0.75 < found.high < 1


def test_retention_of_the_specialist_itself_is_one() -> None:
    """A candidate equal to the specialist keeps everything, for certain."""
    scores = outcomes(12, 0, 0, 8)[0]
    found = retention(scores, scores)
    assert found is not None
    assert (found.low, found.estimate, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_retention_against_a_specialist_that_knows_nothing() -> None:
    """Of a mean of 0 there is no ratio; of one that could be 0 there are no bounds."""
    assert retention([1.0, 0.0], [0.0, 0.0]) is None
    found = retention([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0])
    assert found is not None
    assert (found.low, found.high) == (-math.inf, math.inf)
    single = retention([1.0], [1.0])
    assert single is not None
    assert single.high == math.inf


def test_fiellers_bounds_are_what_the_t_test_just_rejects() -> None:
    """At a bound r the t statistic of candidate - r specialist is the critical one."""
    rng = np.random.default_rng(7)
    specialist = rng.normal(2.0, 0.5, 25)
    candidate = 0.8 * specialist + rng.normal(0.0, 0.4, 25)
    found = retention(candidate, specialist)
    assert found is not None
    for bound in (found.low, found.high):
        t = stats.ttest_1samp(candidate - bound * specialist, 0.0).statistic
        assert abs(t) == pytest.approx(stats.t.ppf(0.975, 24), rel=1e-6)


def test_retention_covers_a_planted_ratio() -> None:
    """A candidate that keeps 0.9 of the specialist on average: about 95 % of intervals hold it."""

    def draw(rng: np.random.Generator) -> Interval | None:
        specialist = np.clip(rng.normal(0.6, 0.2, 40), 0, 1)
        return retention(0.9 * specialist + rng.normal(0, 0.1, 40), specialist)

    assert 0.90 <= coverage(draw, 0.9) <= 0.99


def test_one_value_per_prompt_has_the_usual_error() -> None:
    """Clusters of one give s / sqrt(n)."""
    sample = np.random.default_rng(8).normal(size=30)
    expected = sample.std(ddof=1) / math.sqrt(30)
    assert clustered_error(sample, range(30)) == pytest.approx(expected)


def test_copies_of_a_position_are_no_evidence() -> None:
    """Each value eight times in its prompt: the error is that of the prompts, not 1 / sqrt(8)."""
    sample = np.random.default_rng(9).normal(size=30)
    repeated = clustered_error(np.repeat(sample, 8), np.repeat(np.arange(30), 8))
    assert repeated == pytest.approx(clustered_error(sample, range(30)))


def test_one_prompt_has_no_error_to_tell() -> None:
    """However many its positions."""
    assert clustered_error([1.0, 2.0, 3.0], [5, 5, 5]) == math.inf


def test_the_worst_prompts_come_first() -> None:
    """Sorted by loss, the first among equals first, and only those that lose."""
    candidate, reference = [0.0, 1.0, 0.5, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0, 1.0]
    assert worst_prompts(candidate, reference) == (0, 3, 2)
    assert worst_prompts(candidate, reference, count=1) == (0,)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_named(wrong: float) -> None:
    """Its index and value are in the message."""
    with pytest.raises(StatisticsError, match=f"the value at 1 is {wrong}"):
        mean_interval([0.0, wrong, 1.0])
    with pytest.raises(StatisticsError, match="the value at 1"):
        difference_interval([0.0, 0.0], [0.0, wrong])


def test_nothing_to_compare_is_an_error() -> None:
    """No prompts, no statistics."""
    with pytest.raises(StatisticsError, match="no values"):
        mean_interval([])
