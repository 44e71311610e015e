"""Scores of answers, and what happens where there is none."""

import dataclasses
import time

import numpy as np
import pytest

from ensemble.errors import ScorerError
from ensemble.scorers import Scorer
from server.compare import measures
from server.compare.findings import Findings, Trouble
from server.compare.measures import measure
from tests.server.compare.synthetic import Planted, plant


def scored(scorer: Scorer, num_cases: int) -> Findings:
    """Findings of one candidate, whose answers that scorer judges."""
    found = plant([Planted("a")], num_cases=num_cases, readings=False)
    cases = [dataclasses.replace(case, scorer=scorer) for case in found.cases]
    return dataclasses.replace(found, cases=cases)


def test_an_answer_that_cannot_be_scored_has_none() -> None:
    """It is told, and the others have theirs."""
    asked: list[str] = []

    def score(answer: str, reference: str) -> float:
        asked.append(answer)
        if len(asked) == 2:
            raise ScorerError("too slow")
        return 1.0

    found = measure(scored(Scorer("odd", "", len, score), 3))
    assert found.errors == (Trouble(1, "the answer of a has no score: too slow"),)
    assert found.score[:, 0].tolist() == pytest.approx([1.0, np.nan, 1.0], nan_ok=True)


def test_scores_take_no_longer_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of patterns that explode would take hours: after a minute the rest has no score,
    and that is told once.
    """
    monkeypatch.setattr(measures, "SCORING_SECONDS", 0.05)

    def score(answer: str, reference: str) -> float:
        time.sleep(0.02)
        return 1.0

    found = measure(scored(Scorer("slow", "", len, score), 20))
    num_scored = int(np.isfinite(found.score).sum())
    assert 1 <= num_scored <= 3
    (error,) = found.errors
    assert error.case == num_scored
    assert error.what.startswith("from here on answers have no score")
    assert np.isnan(found.score[num_scored:]).all()
