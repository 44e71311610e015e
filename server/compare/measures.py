"""One number for each prompt and candidate: what statistics over prompts are made of."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ensemble.errors import ScorerError
from ensemble.statistics import Array
from server.compare.findings import Findings, Trouble

Basis = Literal["score", "held_out_loss", "fidelity"]
"""What a verdict stands on: right answers, the loss of given references, or, without either, how
well the reference candidate's answers are imitated."""

USUAL_MARGIN = {"score": 0.02, "held_out_loss": 0.05, "fidelity": 0.05}
"""Margins where none is given: a share of right answers, and nats per token."""

SCORING_SECONDS = 60.0
"""For the scores of one comparison. A pattern may take a fifth of a second on each answer; all else
takes microseconds."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Each [cases, candidates], NaN where there is none.

    `score` is from 0 to 1, `loss` the mean nats per token of the given reference. `drift` is the
    mean KL(reference || candidate) in nats over the reference candidate's answer, so that of the
    reference itself is 0.
    """

    score: Array
    loss: Array
    drift: Array
    errors: tuple[Trouble, ...] = ()

    @property
    def basis(self) -> Basis:
        """The best basis for a verdict that there is."""
        if np.isfinite(self.score).any():
            return "score"
        return "held_out_loss" if np.isfinite(self.loss).any() else "fidelity"

    def of(self, basis: Basis) -> Array:
        """The measure behind a basis."""
        return {"score": self.score, "held_out_loss": self.loss, "fidelity": self.drift}[basis]


def measure(findings: Findings) -> Measures:
    """Score and average everything that was found."""
    shape = len(findings.cases), len(findings.candidates)
    loss, drift = (np.full(shape, math.nan) for _ in range(2))
    for case, candidate in np.ndindex(shape):
        loss[case, candidate] = _loss(findings, case, candidate)
        drift[case, candidate] = _drift(findings, case, candidate)
    score, errors = _scores(findings)
    return Measures(score, loss, drift, errors)


def both(values: Array, first: int, second: int, cases: Sequence[int]) -> tuple[Array, Array]:
    """Two candidates' values on those of the cases on which both have one."""
    pair = values[np.asarray(cases, dtype=np.int64)][:, [first, second]]
    pair = pair[np.isfinite(pair).all(axis=1)]
    return pair[:, 0], pair[:, 1]


def _scores(findings: Findings) -> tuple[Array, tuple[Trouble, ...]]:
    """The score of every answer, and why some have none."""
    score = np.full((len(findings.cases), len(findings.candidates)), math.nan)
    errors = []
    deadline = time.monotonic() + SCORING_SECONDS
    for case, candidate in np.ndindex(score.shape):
        if time.monotonic() > deadline:
            why = (
                "from here on answers have no score, since those before took "
                f"{SCORING_SECONDS:g} s: use simpler patterns"
            )
            errors.append(Trouble(case, why))
            break
        try:
            score[case, candidate] = _score(findings, case, candidate)
        except ScorerError as error:
            name = findings.candidates[candidate].name
            errors.append(Trouble(case, f"the answer of {name} has no score: {error}"))
    return score, tuple(errors)


def _score(findings: Findings, case: int, candidate: int) -> float:
    asked, answer = findings.cases[case], findings.answers[case][candidate]
    if asked.scorer is None or asked.reference is None or answer.error is not None:
        return math.nan
    return asked.scorer.score(answer.text, asked.reference)


def _loss(findings: Findings, case: int, candidate: int) -> float:
    reading = findings.text(case, "given", candidate)
    loss = None if reading is None else reading.loss(candidate)
    return math.nan if loss is None else loss


def _drift(findings: Findings, case: int, candidate: int) -> float:
    reference = findings.terms.reference
    reading = findings.text(case, "reference", candidate)
    if reading is None or reference in reading.errors:
        return math.nan
    if candidate == reference:
        return 0.0
    pair = reading.pairs.get((reference, candidate))
    return math.nan if pair is None else float(pair.forward_kl.mean())
