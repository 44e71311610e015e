"""Every prompt by itself: answers, and how far candidates were apart at every position."""

import math

import numpy as np

from server.compare.answer import first_divergence
from server.compare.findings import Findings, TextKind
from server.compare.measures import Measures
from server.compare.prompt_report import AnswerReport, PositionsReport, PromptReport
from server.compare.ribbons import TokenText
from server.compare.versus import KINDS

DIGITS = 5
"""Significant digits of numbers of which there are thousands."""


def prompt_report(
    findings: Findings, measures: Measures, case: int, token_text: TokenText, *, positions: bool
) -> PromptReport:
    """One prompt; without `positions` the tokens and the numbers of every position are left out."""
    asked = findings.cases[case]
    candidates = range(len(findings.candidates))
    return PromptReport(
        index=case,
        prompt=asked.shown,
        tag=asked.tag,
        reference=asked.reference,
        answers=tuple(
            _answer(findings, measures, case, candidate, token_text, positions)
            for candidate in candidates
        ),
        positions=tuple(
            found
            for candidate in candidates
            for kind in KINDS
            if positions and (found := _positions(findings, case, kind, candidate))
        ),
    )


def _answer(
    findings: Findings,
    measures: Measures,
    case: int,
    candidate: int,
    token_text: TokenText,
    positions: bool,
) -> AnswerReport:
    answer = findings.answers[case][candidate]
    reference = findings.answers[case][findings.terms.reference]
    is_comparable = answer.error is None and reference.error is None
    num_tokens = len(answer.token_ids)
    return AnswerReport(
        candidate=candidate,
        text=answer.text,
        tokens=tuple(map(token_text, answer.token_ids)) if positions else (),
        finish_reason=answer.finish_reason,
        first_divergence=first_divergence(answer, reference) if is_comparable else None,
        score=_known(measures.score[case, candidate]),
        loss=_known(measures.loss[case, candidate]),
        seconds=answer.seconds,
        seconds_to_first_token=answer.seconds_to_first,
        num_tokens=num_tokens,
        num_forwards=answer.num_rows * num_tokens,
        weights=answer.weights,
        error=answer.error,
    )


def _positions(
    findings: Findings, case: int, kind: TextKind, candidate: int
) -> PositionsReport | None:
    reference = findings.terms.reference
    reading = findings.text(case, kind, candidate)
    pair = None if reading is None else reading.pairs.get((reference, candidate))
    if reading is None or pair is None:
        return None
    return PositionsReport(
        text=kind,
        candidate=candidate,
        forward_kl=_rounded(pair.forward_kl),
        reverse_kl=_rounded(pair.reverse_kl),
        js=_rounded(pair.js),
        total_variation=_rounded(pair.total_variation),
        same_top=tuple(pair.same_top.tolist()),
        logprobs=_rounded(reading.log_probs[candidate]),
        reference_logprobs=_rounded(reading.log_probs[reference]),
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())
