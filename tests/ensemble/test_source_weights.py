"""Weights from the prompt: a softmax of scores, and its hard form."""

import math
import random

import pytest

from ensemble.errors import StatisticsError
from ensemble.source_weights import best_source, mean_log_likelihood, prompt_weights


def random_scores(seed: int) -> dict[str, float]:
    generator = random.Random(seed)
    return {name: -generator.uniform(0.5, 6.0) for name in "abcd"[: 1 + seed % 4]}


def test_a_score_is_the_mean_log_probability() -> None:
    """Per token, so that a prompt's length does not sharpen the weights."""
    assert mean_log_likelihood([-1.0, -2.0, -6.0]) == -3.0
    assert mean_log_likelihood([-1.0] * 500) == -1.0


def test_a_prompt_of_one_token_says_nothing() -> None:
    """Nothing predicts the first token: every source has the same score, and the same weight."""
    assert mean_log_likelihood([]) == 0.0
    assert prompt_weights({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


def test_weights_by_hand() -> None:
    """Scores ln 3 apart weigh 3 to 1; at temperature 2 sqrt 3 to 1."""
    scores = {"math": -1.0, "code": -1.0 - math.log(3)}
    assert prompt_weights(scores) == pytest.approx({"math": 0.75, "code": 0.25})
    root = math.sqrt(3)
    soft = prompt_weights(scores, temperature=2.0)
    assert soft == pytest.approx({"math": root / (1 + root), "code": 1 / (1 + root)})


def test_weights_are_inverse_perplexities() -> None:
    """At temperature 1 a source weighs as 1 / perplexity: 10 against 40 is 0.8 against 0.2."""
    scores = {"math": -math.log(10), "code": -math.log(40)}
    assert prompt_weights(scores) == pytest.approx({"math": 0.8, "code": 0.2})


def test_weights_sum_to_one_and_follow_the_scores() -> None:
    """Over random scores: positive, of sum 1, and ordered as the scores are."""
    for seed in range(50):
        scores = random_scores(seed)
        weights = prompt_weights(scores, temperature=0.1 + seed / 10)
        assert math.fsum(weights.values()) == pytest.approx(1.0, abs=1e-12)
        assert min(weights.values()) >= 0
        assert sorted(weights, key=weights.__getitem__) == sorted(scores, key=scores.__getitem__)
        assert list(weights) == list(scores)


def test_a_constant_changes_nothing() -> None:
    """Only differences between sources count."""
    for seed in range(20):
        scores = random_scores(seed)
        moved = {name: score - 100.0 for name, score in scores.items()}
        assert prompt_weights(moved) == pytest.approx(prompt_weights(scores))


def test_a_low_temperature_routes_and_a_high_one_averages() -> None:
    """The limits of the softmax."""
    scores = {"a": -2.0, "b": -1.9, "c": -3.0}
    assert prompt_weights(scores, temperature=1e-6) == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert prompt_weights(scores, temperature=1e9) == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_no_score_is_too_low() -> None:
    """Scores of a thousand nats neither overflow nor underflow to nothing."""
    weights = prompt_weights({"a": -5000.0, "b": -5000.0, "c": -9000.0})
    assert weights == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_an_impossible_prompt_weighs_nothing() -> None:
    """A source that rules the prompt out gets 0, and the others share."""
    assert prompt_weights({"a": -math.inf, "b": -1.0}) == {"a": 0.0, "b": 1.0}


def test_the_best_source_is_the_one_with_the_highest_score() -> None:
    """The hard form; among equals the first by name, whatever the order."""
    assert best_source({"math": -1.5, "code": -1.2}) == "code"
    assert best_source({"math": -1.0, "code": -1.0}) == "code"
    assert best_source({"code": -1.0, "math": -1.0}) == "code"
    for seed in range(20):
        scores, weights = random_scores(seed), prompt_weights(random_scores(seed))
        assert weights[best_source(scores)] == max(weights.values())


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_broken_score_is_named(wrong: float) -> None:
    """A source whose logits are NaN cannot be weighed, and is named."""
    with pytest.raises(StatisticsError, match=f"under code is {wrong}"):
        prompt_weights({"math": -1.0, "code": wrong})
    with pytest.raises(StatisticsError, match="under code"):
        best_source({"math": -1.0, "code": wrong})


@pytest.mark.parametrize(
    ("scores", "temperature", "message"),
    [
        ({}, 1.0, "no sources to weigh"),
        ({"a": -math.inf}, 1.0, "impossible to every source"),
        ({"a": -1.0}, 0.0, "the temperature must be above 0, got 0"),
        ({"a": -1.0}, -1.0, "the temperature must be above 0, got -1"),
        ({"a": -1.0}, math.nan, "the temperature must be above 0, got nan"),
    ],
)
def test_what_cannot_be_weighed_is_refused(
    scores: dict[str, float], temperature: float, message: str
) -> None:
    """With the value that is wrong."""
    with pytest.raises(StatisticsError, match=message):
        prompt_weights(scores, temperature)
