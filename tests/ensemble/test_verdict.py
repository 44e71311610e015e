"""Verdicts: the sentence says what was found, what it costs, and what to do."""

import math

import numpy as np
import pytest

from ensemble.errors import StatisticsError
from ensemble.verdict import Verdict, verdict


def scores(n: int, wins: int, losses: int) -> tuple[list[float], list[float]]:
    """Right-or-wrong scores on n prompts: wins and losses of the candidate, the rest the same."""
    same = [float(index % 2) for index in range(n - wins - losses)]
    return [*same, *[1.0] * wins, *[0.0] * losses], [*same, *[0.0] * wins, *[1.0] * losses]


def losses(n: int, shift: float) -> tuple[list[float], list[float]]:
    """Losses of which the candidate's is higher by `shift` on average, to the bit of rounding."""
    rng = np.random.default_rng(1)
    reference, noise = rng.gamma(4.0, 0.5, n), rng.normal(0, 0.05, n)
    noise = 0.05 * (noise - noise.mean()) / noise.std(ddof=1)
    return (reference + noise + shift).tolist(), reference.tolist()


def said(found: Verdict) -> str:
    """The sentence, with a plain letter for the multiplication sign."""
    return found.sentence.replace("\N{MULTIPLICATION SIGN}", "x")


def judged(wins: int, lost: int, n: int = 1000, cost: float | None = 3.4) -> Verdict:
    return verdict(*scores(n, wins, lost), margin=0.02, cost_ratio=cost)


def test_a_candidate_as_good_and_cheaper_ships() -> None:
    """The sentence of the issue: the bound, the level, the cost, the advice."""
    found = judged(wins=10, lost=9)
    # Tango at b = 10, c = 9, n = 1000: a little below 0.001 - 1.96 sqrt(19) / 1000 = -0.0075
    expected = "merge within 0.9 points of the ensemble (95 % CI), 3.4 x cheaper: ship"
    assert found.sentence == expected.replace("x", "\N{MULTIPLICATION SIGN}")
    assert (found.advice, found.conclusion) == ("ship", "non_inferior")
    assert -0.0085 < found.difference.low < -0.0075


def test_a_bound_is_never_rounded_down() -> None:
    """A candidate that may lose 0.77 points is within 0.8, and so is one that may lose 0.71."""
    for wins in range(3, 12):
        found = judged(wins=wins, lost=wins)
        said = float(found.sentence.split("within ")[1].split(" points")[0])
        assert -100 * found.difference.low <= said <= -100 * found.difference.low + 0.1


def test_a_candidate_that_loses_is_not_shipped() -> None:
    """Its whole interval lies beyond the margin, whatever it saves."""
    found = judged(wins=10, lost=90)
    assert found.advice == "keep"
    assert found.conclusion == "inferior"
    assert found.sentence.startswith("merge 6.")
    assert "worse than the ensemble (95 % CI), 3.4 x cheaper: do not ship" in said(found)


def test_too_few_prompts_are_said_to_be_too_few() -> None:
    """The number needed, what was seen, and the margin that it was held against."""
    found = judged(wins=2, lost=3, n=50)
    # deviation sqrt(6 / 52): (2.80158 * 0.33968 / 0.02)² = 2264, to two digits 2300
    assert found.num_needed == 2300
    assert found.sentence.startswith("not enough prompts: about 2300 needed; on 50, merge is 2.0 ")
    assert "points worse than the ensemble (95 % CI -" in found.sentence
    assert found.sentence.endswith("margin 2.0 points")
    assert found.advice == "undecided"


def test_a_difference_on_the_margin_is_too_close_to_call() -> None:
    """Where no number of prompts would decide none is named."""
    found = verdict(*losses(200, 0.03), margin=0.03, metric="loss")
    assert found.sentence.startswith(
        "too close to the margin to call; on 200, merge is 0.030 nats "
    )
    assert found.num_needed is None


def test_a_better_candidate_is_called_better() -> None:
    """Above 0 with its whole interval: how much better, from and to."""
    found = judged(wins=90, lost=10)
    assert "points better than the ensemble (95 % CI), 3.4 x cheaper: ship" in said(found)
    assert found.difference.low > 0


def test_a_better_candidate_that_costs_more_is_weighed() -> None:
    """Neither answer is ours to give."""
    found = judged(wins=90, lost=10, cost=0.5)
    assert found.advice == "weigh"
    assert said(found).endswith("2.0 x dearer: weigh the gain against the cost")


def test_a_candidate_as_good_that_costs_more_is_not_worth_it() -> None:
    """Without a gain there is no reason to pay."""
    found = judged(wins=10, lost=10, cost=0.5)
    assert (found.advice, found.conclusion) == ("keep", "non_inferior")
    assert said(found).endswith("2.0 x dearer: keep the ensemble")


@pytest.mark.parametrize(
    ("cost", "ending"),
    [
        (None, "(95 % CI): ship"),
        (1.0, "(95 % CI), at the same cost: ship"),
        (0.96, "(95 % CI), at the same cost: ship"),
        (1.06, "(95 % CI), 1.1 x cheaper: ship"),
        (12.34, "(95 % CI), 12.3 x cheaper: ship"),
    ],
)
def test_costs_in_words(cost: float | None, ending: str) -> None:
    """A few percent are the same cost, and without costs none are spoken of."""
    assert said(judged(wins=10, lost=10, cost=cost)).endswith(ending)


def test_of_losses_lower_is_better() -> None:
    """A candidate whose loss is lower has a positive difference, in nats."""
    better = verdict(*losses(100, -0.1), margin=0.02, metric="loss")
    assert better.difference.estimate == pytest.approx(0.1)
    assert "nats better than the ensemble" in better.sentence
    worse = verdict(*losses(100, 0.1), margin=0.02, metric="loss")
    assert worse.difference.estimate == pytest.approx(-0.1)
    assert (worse.advice, worse.mcnemar) == ("keep", None)


def test_a_loss_within_the_margin_ships() -> None:
    """Within 0.02 nats at a spread of 0.05 over 100 prompts: 1.98 0.05 / 10 = 0.0099."""
    found = verdict(*losses(100, 0.0), margin=0.02, metric="loss", cost_ratio=2.0)
    assert found.difference.low == pytest.approx(-0.0099, abs=1e-3)
    assert said(found).startswith("merge within 0.0")
    assert said(found).endswith(" nats of the ensemble (95 % CI), 2.0 x cheaper: ship")


def test_the_two_are_called_by_their_names() -> None:
    """Any candidate against any reference."""
    found = verdict(*scores(1000, 5, 5), margin=0.02, names=("tutor@7", "tutor@6"))
    assert found.sentence.startswith("tutor@7 within ")
    assert " of tutor@6 (95 % CI)" in found.sentence
    assert (found.candidate, found.reference) == ("tutor@7", "tutor@6")


def test_the_level_is_said() -> None:
    """A verdict at 90 % says so."""
    found = verdict(*scores(1000, 5, 5), margin=0.02, level=0.9)
    assert "(90 % CI)" in found.sentence
    assert found.difference.level == 0.9


def test_right_or_wrong_has_an_exact_test_and_graded_scores_have_none() -> None:
    """McNemar is for scores of 0 and 1."""
    found = judged(wins=8, lost=2)
    assert found.mcnemar is not None
    assert (found.mcnemar.num_candidate_only, found.mcnemar.num_reference_only) == (8, 2)
    # 2 (1 + 10 + 45) / 1024
    assert found.mcnemar.p_value == pytest.approx(0.109375)
    graded = verdict([0.5] * 20, [0.5] * 20, margin=0.02)
    assert graded.mcnemar is None
    assert graded.sentence == "merge within 0.0 points of the ensemble (95 % CI): ship"


def test_one_prompt_gets_a_sentence_without_bounds() -> None:
    """Nothing is known of its spread, and no infinity is printed."""
    found = verdict([1.2], [1.1], margin=0.02, metric="loss")
    assert found.sentence == (
        "not enough prompts: about 10 needed; on 1, merge is 0.100 nats worse than the ensemble, "
        "margin 0.020 nats"
    )


def test_a_verdict_is_deterministic() -> None:
    """The same numbers and seed, the same verdict."""
    values = losses(40, 0.01)
    first = verdict(*values, margin=0.02, metric="loss", seed=3)
    assert first == verdict(*values, margin=0.02, metric="loss", seed=3)


@pytest.mark.parametrize(
    ("candidate", "options", "message"),
    [
        ([0.5, 1.5], {}, "scores must lie between 0 and 1"),
        ([0.5, -0.1], {}, "scores must lie between 0 and 1"),
        ([0.5, math.nan], {}, "the value at 1 is nan"),
        ([0.5, 0.5], {"margin": 0.0}, "the margin must be above 0"),
        ([0.5, 0.5], {"cost_ratio": 0.0}, "the cost ratio must be above 0, got 0"),
        ([0.5, 0.5], {"cost_ratio": math.inf}, "the cost ratio must be above 0, got inf"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    candidate: list[float], options: dict[str, float], message: str
) -> None:
    """With the value that is wrong."""
    with pytest.raises(StatisticsError, match=message):
        verdict(candidate, [0.5, 0.5], **{"margin": 0.02, **options})  # type: ignore[arg-type]
