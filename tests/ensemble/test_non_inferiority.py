"""Conclusions by a margin: right on planted differences, at the promised rates."""

import math

import numpy as np
import pytest

from ensemble.errors import StatisticsError
from ensemble.non_inferiority import MIN_PROMPTS, non_inferiority, prompts_needed

REPEATS = 200


def losses(seed: int, n: int, shift: float, spread: float = 0.1) -> tuple[list[float], list[float]]:
    """A candidate and a reference whose paired values differ by `shift` on average."""
    rng = np.random.default_rng(seed)
    reference = rng.gamma(4.0, 0.5, n)
    return (reference + rng.normal(shift, spread, n)).tolist(), reference.tolist()


def answers(seed: int, n: int, shift: float, flips: float) -> tuple[list[float], list[float]]:
    """Right-or-wrong scores; `flips` of the prompts differ, for the better by `shift` more."""
    rng = np.random.default_rng(seed)
    kind = rng.random(n)
    gain, lose = (flips + shift) / 2, (flips - shift) / 2
    both = (rng.random(n) < 0.6).astype(float)
    candidate = np.where(kind < gain, 1.0, np.where(kind < gain + lose, 0.0, both))
    reference = np.where(kind < gain, 0.0, np.where(kind < gain + lose, 1.0, both))
    return candidate.tolist(), reference.tolist()


def test_a_clear_case_is_called() -> None:
    """No loss within a wide margin, a loss far beyond it, and too few prompts for a narrow one."""
    assert non_inferiority(*losses(0, 100, 0.0), 0.1).conclusion == "non_inferior"
    assert non_inferiority(*losses(0, 100, -0.3), 0.1).conclusion == "inferior"
    assert non_inferiority(*losses(0, 20, 0.0), 0.001).conclusion == "undecided"


def test_a_decided_case_needs_no_more_prompts() -> None:
    """The number needed is given only where it is wanted, and is more than there are."""
    assert non_inferiority(*losses(0, 100, 0.0), 0.1).num_needed is None
    undecided = non_inferiority(*losses(1, 20, 0.0), 0.005)
    assert undecided.num_needed is not None
    assert undecided.num_needed > undecided.num_prompts == 20


def test_a_planted_non_inferior_candidate_passes_at_the_promised_rate() -> None:
    """With the prompts that 80 % power asks for, four of five pass; 3 standard errors are 8.5."""
    n = prompts_needed(0.1, 0.03, power=0.8)
    assert n == 88  # ((1.95996 + 0.84162) 0.1 / 0.03)² = 87.2
    found = [non_inferiority(*losses(s, n, 0.0), 0.03).conclusion for s in range(REPEATS)]
    assert 0.70 <= found.count("non_inferior") / REPEATS <= 0.90


def test_at_the_margin_either_conclusion_is_seldom_drawn() -> None:
    """A candidate worse by the margin itself passes one time in forty, and is called inferior one
    time in forty; 3 standard errors are 3.3 points.
    """
    found = [non_inferiority(*losses(s, 88, -0.03), 0.03).conclusion for s in range(REPEATS)]
    assert found.count("non_inferior") / REPEATS <= 0.025 + 0.033
    assert found.count("inferior") / REPEATS <= 0.025 + 0.033


def test_right_or_wrong_passes_at_the_promised_rate() -> None:
    """Scores of 0 and 1 of which a tenth differ: deviation sqrt(0.1), and Tango's interval."""
    n = prompts_needed(math.sqrt(0.1), 0.06, power=0.8)
    results = [non_inferiority(*answers(s, n, 0.0, 0.1), 0.06) for s in range(REPEATS)]
    passed = sum(one.conclusion == "non_inferior" for one in results) / REPEATS
    assert 0.70 <= passed <= 0.90
    assert results[0].difference.method == "tango"


def test_right_or_wrong_at_the_margin_seldom_passes() -> None:
    """A tenth differ and the candidate loses 6 points: one in forty may pass at that margin."""
    results = [non_inferiority(*answers(s, 220, -0.06, 0.1), 0.06) for s in range(REPEATS)]
    passed = sum(one.conclusion == "non_inferior" for one in results) / REPEATS
    assert passed <= 0.025 + 0.033


def test_a_few_prompts_that_all_agree_prove_nothing() -> None:
    """Three right answers each are no case for a margin of two points: thousands are needed."""
    found = non_inferiority([1.0] * 3, [1.0] * 3, 0.02)
    assert found.conclusion == "undecided"
    # deviation sqrt(1 / 5) by Agresti and Min: ((1.96 + 0.8416) 0.4472 / 0.02)² = 3924
    assert found.num_needed == 4000


def test_agreement_of_right_and_wrong_is_proved_by_numbers() -> None:
    """z²/(n + z²) < 0.02 from n = 189 on: 188 prompts that all agree do not pass, 189 do."""
    assert non_inferiority([1.0] * 188, [1.0] * 188, 0.02).conclusion == "undecided"
    assert non_inferiority([1.0] * 189, [1.0] * 189, 0.02).conclusion == "non_inferior"


def test_fewer_than_ten_prompts_decide_nothing() -> None:
    """Equal losses on nine prompts are undecided, on ten not inferior."""
    assert MIN_PROMPTS == 10
    nine = non_inferiority([0.5] * 9, [0.5] * 9, 0.01)
    assert (nine.conclusion, nine.num_needed) == ("undecided", 10)
    assert non_inferiority([0.5] * 10, [0.5] * 10, 0.01).conclusion == "non_inferior"


def test_one_prompt_is_undecided() -> None:
    """It has no spread to plan with: the least number of prompts is asked for."""
    found = non_inferiority([0.4], [0.5], 0.01)
    assert (found.conclusion, found.num_needed) == ("undecided", 10)


def test_a_difference_at_the_margin_asks_for_more_than_there_are() -> None:
    """Planned for no difference the prompts would do; they do not, so the observed one counts."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, 200)
    differences = noise - noise.mean() - 0.025
    found = non_inferiority(differences.tolist(), [0.0] * 200, 0.03)
    assert found.conclusion == "undecided"
    # ((1.96 + 0.8416) 0.1 / 0.005)²: about 3100 at a deviation of 0.1
    assert found.num_needed is not None
    assert 2500 <= found.num_needed <= 4000


def test_a_difference_on_the_margin_itself_is_settled_by_no_number() -> None:
    """Then no number of prompts in reach would decide, and none is named."""
    noise = np.random.default_rng(2).normal(0, 0.1, 200)
    found = non_inferiority((noise - noise.mean() - 0.03).tolist(), [0.0] * 200, 0.03)
    assert (found.conclusion, found.num_needed) == ("undecided", None)


def test_the_number_needed_grows_with_spread_and_falls_with_the_margin() -> None:
    """Twice the deviation, or half the margin, asks for four times the prompts."""
    n = prompts_needed(1.0, 0.1)
    assert n == 785  # (2.80158 / 0.1)² = 784.9
    assert prompts_needed(2.0, 0.1) == pytest.approx(4 * n, abs=4)
    assert prompts_needed(1.0, 0.05) == pytest.approx(4 * n, abs=4)
    assert prompts_needed(1.0, 0.1, power=0.9) > n
    assert prompts_needed(0.0, 0.1) == MIN_PROMPTS


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan, math.inf])
def test_a_margin_must_be_above_zero(margin: float) -> None:
    """Without a margin nothing can be shown."""
    with pytest.raises(StatisticsError, match="the margin must be above 0"):
        non_inferiority([0.0], [0.0], margin)
