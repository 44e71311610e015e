"""Candidates by themselves: scores, losses, and how much of a specialist's score is retained."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ensemble.statistics import Array, Interval, is_binary, mean_interval, retention, wilson
from server.compare.findings import Findings
from server.compare.measures import Measures
from server.compare.report import Summary

Specialists = Mapping[str | None, int | None]
"""The specialist of each tag: the index of a candidate, or None if there is none."""


def find_specialists(findings: Findings, measures: Measures) -> Specialists:
    """For each tag the source that is named like it, else the source with the best score on it."""
    sources = [i for i, candidate in enumerate(findings.candidates) if candidate.role == "source"]
    by_tag: dict[str | None, list[int]] = {}
    for case in findings.cases:
        by_tag.setdefault(case.tag, []).append(case.index)
    named = {findings.candidates[index].name: index for index in sources}
    return {
        tag: named[tag] if tag in named else _best(measures.score[cases], sources)
        for tag, cases in by_tag.items()
    }


def summarize(
    findings: Findings,
    measures: Measures,
    specialists: Specialists,
    candidate: int,
    cases: Sequence[int],
) -> Summary:
    """One candidate over some prompts."""
    level, seed = findings.terms.level, findings.terms.seed
    answers = [findings.answers[case][candidate] for case in cases]
    good = [answer for answer in answers if answer.error is None]
    score, loss = (_known(values[cases, candidate]) for values in (measures.score, measures.loss))
    return Summary(
        num_answers=len(good),
        num_errors=len(answers) - len(good),
        num_tokens=float(np.mean([len(answer.token_ids) for answer in good])) if good else 0.0,
        score=_share(score, level, seed) if len(score) else None,
        loss=mean_interval(loss, level=level, seed=seed) if len(loss) else None,
        retention=_retention(findings, measures.score, specialists, candidate, cases),
    )


def _share(scores: Array, level: float, seed: int) -> Interval:
    if is_binary(scores):
        return wilson(int(scores.sum()), len(scores), level=level)
    return mean_interval(scores, level=level, seed=seed)


def _retention(
    findings: Findings,
    scores: Array,
    specialists: Specialists,
    candidate: int,
    cases: Sequence[int],
) -> Interval | None:
    """Each prompt's specialist is that of its tag; prompts without one do not count."""
    pairs = []
    for case in cases:
        specialist = specialists[findings.cases[case].tag]
        if specialist is not None:
            pairs.append((scores[case, candidate], scores[case, specialist]))
    known = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if not known:
        return None
    own, best = zip(*known, strict=True)
    return retention(own, best, level=findings.terms.level)


def _best(scores: Array, sources: Sequence[int]) -> int | None:
    """The source with the highest mean score, the first among equals; `scores`: [some cases, ..]"""
    means = {source: _known(scores[:, source]) for source in sources}
    rated = {source: float(values.mean()) for source, values in means.items() if len(values)}
    return max(rated, key=lambda source: rated[source]) if rated else None


def _known(values: Array) -> Array:
    return values[np.isfinite(values)]
