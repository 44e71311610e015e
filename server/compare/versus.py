"""A candidate against the reference: verdicts, differences, divergences."""

from collections.abc import Sequence

import numpy as np

from ensemble.fidelity import fidelity_table
from ensemble.statistics import Interval, clustered_error, difference_interval, worst_prompts
from ensemble.verdict import Verdict, verdict
from server.compare.answer import first_divergence
from server.compare.findings import Findings, TextKind
from server.compare.measures import USUAL_MARGIN, Measures, both
from server.compare.reading import PairReading, joined
from server.compare.report import Divergence, Histogram, Table, Versus

KINDS: tuple[TextKind, ...] = ("given", "reference", "candidate")

JS_EDGES = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.7)
"""Edges of the histogram, in nats: JS is at most ln 2."""

NUM_WORST = 10


def compare(findings: Findings, measures: Measures, candidate: int, ratio: float | None) -> Versus:
    """Everything about one candidate that the reference is needed for, over all prompts."""
    cases = range(len(findings.cases))
    reference = findings.terms.reference
    differences = {
        name: _difference(findings, sign * values, candidate, cases)
        for name, sign, values in (("score", 1, measures.score), ("loss", -1, measures.loss))
    }
    same = [
        first_divergence(answers[candidate], answers[reference]) is None
        for answers in findings.answers
        if answers[candidate].error is None and answers[reference].error is None
    ]
    return Versus(
        verdict=judge(findings, measures, candidate, cases, ratio),
        score_difference=differences["score"],
        loss_difference=differences["loss"],
        same_answers=float(np.mean(same)) if same else None,
        divergences=tuple(d for kind in KINDS if (d := divergence(findings, kind, candidate))),
        tables=tuple(t for kind in KINDS[:2] if (t := _table(findings, kind, candidate))),
        histogram=_histogram(findings, candidate),
        worst=_worst(findings, measures, candidate),
    )


def judge(
    findings: Findings,
    measures: Measures,
    candidate: int,
    cases: Sequence[int],
    ratio: float | None,
    *,
    against: int | None = None,
) -> Verdict | None:
    """The verdict on some prompts, `against` the reference if nobody is named; None if no prompt
    says anything of both.
    """
    terms, basis = findings.terms, measures.basis
    other = terms.reference if against is None else against
    first, second = _values(measures, candidate, other, cases)
    if not len(first):
        return None
    held_against = spoken(findings, other)
    return verdict(
        first,
        second,
        margin=USUAL_MARGIN[basis] if terms.margin is None else terms.margin,
        metric="score" if basis == "score" else "loss",
        names=(
            findings.candidates[candidate].name,
            held_against if against is None else f"its source {held_against} alone",
        ),
        cost_ratio=ratio,
        level=terms.level,
        seed=terms.seed,
    )


def advantages(
    findings: Findings, measures: Measures, candidate: int, against: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the verdict holds against each other, of which higher is better, on all prompts."""
    sign = 1 if measures.basis == "score" else -1
    first, second = _values(measures, candidate, against, range(len(findings.cases)))
    return sign * first, sign * second


def _values(
    measures: Measures, candidate: int, against: int, cases: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    first, second = both(measures.of(measures.basis), candidate, against, cases)
    if measures.basis == "fidelity":
        # The same to both: else zeros and ones would pass for wrong and right answers.
        first, second = first + 2.0, second + 2.0
    return first, second


def spoken(findings: Findings, candidate: int) -> str:
    """A candidate's name within a sentence: `the ensemble`, `tutor@6`."""
    found = findings.candidates[candidate]
    return f"the {found.name}" if found.name == found.role else found.name


def divergence(
    findings: Findings, kind: TextKind, candidate: int, reference: int | None = None
) -> Divergence | None:
    """Means over the positions of all texts of a kind, of one voice against another one."""
    against = findings.terms.reference if reference is None else reference
    readings, prompts = pair_readings(findings, kind, candidate, against)
    if not readings:
        return None
    whole = joined(readings)
    return Divergence(
        text=kind,
        num_positions=len(whole.js),
        forward_kl=float(whole.forward_kl.mean()),
        forward_kl_error=clustered_error(whole.forward_kl, prompts),
        reverse_kl=float(whole.reverse_kl.mean()),
        js=float(whole.js.mean()),
        total_variation=float(whole.total_variation.mean()),
        same_top=float(whole.same_top.mean()),
    )


def pair_readings(
    findings: Findings, kind: TextKind, voice: int, against: int
) -> tuple[list[PairReading], list[int]]:
    """The readings of a pair on every text of a kind, and the prompt of each position."""
    readings, prompts = [], []
    for case in range(len(findings.cases)):
        # whose own text is read matters for candidates alone, and probes have none
        reading = findings.text(case, kind, voice)
        pair = None if reading is None else reading.pairs.get((against, voice))
        if pair is not None:
            readings.append(pair)
            prompts += [case] * len(pair.js)
    return readings, prompts


def _difference(
    findings: Findings, values: np.ndarray, candidate: int, cases: Sequence[int]
) -> Interval | None:
    first, second = both(values, candidate, findings.terms.reference, cases)
    if not len(first):
        return None
    terms = findings.terms
    return difference_interval(first, second, level=terms.level, seed=terms.seed)


def _table(findings: Findings, kind: TextKind, candidate: int) -> Table | None:
    reference = findings.terms.reference
    readings, prompts = pair_readings(findings, kind, candidate, reference)
    if not readings:
        return None
    whole = joined(readings)
    texts = [findings.text(case, kind, candidate) for case in dict.fromkeys(prompts)]
    base, other = (
        np.concatenate([text.log_probs[voice] for text in texts if text is not None])
        for voice in (reference, candidate)
    )
    found = fidelity_table(whole.forward_kl, whole.same_top.tolist(), base, other, prompts)
    return Table(kind, found.num_positions, found.num_prompts, found.statistics)


def _histogram(findings: Findings, candidate: int) -> Histogram | None:
    readings, _ = pair_readings(findings, "reference", candidate, findings.terms.reference)
    if not readings:
        return None
    counts, _ = np.histogram(joined(readings).js, JS_EDGES)
    return Histogram(JS_EDGES, tuple(int(count) for count in counts))


def _worst(findings: Findings, measures: Measures, candidate: int) -> tuple[int, ...]:
    """By the verdict's measure; among prompts that lose the same, by how far the answers drift."""
    reference, basis = findings.terms.reference, measures.basis
    sign = 1 if basis == "score" else -1
    values = measures.of(basis)[:, [candidate, reference]]
    known = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(known):
        return ()
    drift = np.nan_to_num(measures.drift[known, candidate])
    order = known[np.argsort(-drift, kind="stable")]
    first, second = sign * values[order, 0], sign * values[order, 1]
    return tuple(int(order[index]) for index in worst_prompts(first, second, NUM_WORST))
