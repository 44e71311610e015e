"""Which candidates are broken: that takes no margin, and no more prompts.

The bounds are wide on purpose: a merge that is only bad is left to the verdict. What they are, and
why, is told in docs/compare.md.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ensemble.statistics import Array, mcnemar
from server.compare.culprits import Culprits, find_culprit
from server.compare.findings import Findings
from server.compare.measures import Measures, both
from server.compare.numbering import counted
from server.compare.repetition import is_degenerate
from server.compare.report import Broken, Sign
from server.compare.summaries import Specialists
from server.compare.versus import spoken

BROKEN_NATS = 5.0
"""A mean loss by so much above the base's: each token 150 times less likely. A preset that unlearns
a skill on purpose loses 4; guessing among 49,152 tokens costs 10.8 in all."""

FAILED_SHARE = 0.5
"""Of the prompts that others answered, without an answer of its own."""

SPECIALISTS_SCORE = 0.8
"""What its sources alone must have right where it has nothing right."""

MAX_P_VALUE = 0.05
MIN_PROMPTS = 3
"""For losses and repetition: that of one prompt may be its own fault."""

MERGED = frozenset({"merge", "ensemble", "previous", "candidate"})
"""Roles of what holds sources, and should do what they do."""


def find_broken(
    findings: Findings, measures: Measures, specialists: Specialists
) -> tuple[Broken, ...]:
    """Every candidate that is broken, with what shows it and the source that did it, if known."""
    found: dict[int, dict[Sign, str]] = {}
    for candidate in range(len(findings.candidates)):
        signs = dict(_signs(findings, measures, specialists, candidate))
        if signs:
            found[candidate] = signs
    culprits = Culprits(findings, measures, frozenset(found), anchor(findings, measures))
    return tuple(_broken(culprits, index, signs) for index, signs in found.items())


def anchor(findings: Findings, measures: Measures, candidate: int | None = None) -> int | None:
    """What losses are held against: the base, else the best candidate beside this one."""
    bases = [i for i, found in enumerate(findings.candidates) if found.role == "base"]
    if bases:
        return bases[0]
    losses = measures.loss
    others = [i for i in range(losses.shape[1]) if i != candidate]
    known = [i for i in others if np.isfinite(losses[:, i]).any()]
    return min(known, key=lambda i: float(np.nanmean(losses[:, i])), default=None)


def _broken(culprits: Culprits, index: int, signs: dict[Sign, str]) -> Broken:
    name = spoken(culprits.findings, index)
    where = " on these prompts" if signs.keys() == {"score"} else ""
    source, why = find_culprit(culprits, index, signs.keys())
    said = "; ".join([*signs.values(), *([why] if why else [])])
    return Broken(index, tuple(signs), source, f"{name} is broken{where}: {said}")


def _signs(
    findings: Findings, measures: Measures, specialists: Specialists, candidate: int
) -> Iterator[tuple[Sign, str]]:
    if why := _failed(findings, candidate):
        yield "no_answers", why
    if findings.candidates[candidate].role == "base":
        return
    if why := _loses(findings, measures, candidate):
        yield "loss", why
    if why := _has_nothing_right(findings, measures, specialists, candidate):
        yield "score", why
    if why := _says_nothing(findings, measures, candidate):
        yield "repetition", why


def _failed(findings: Findings, candidate: int) -> str | None:
    """Most of its answers could not be computed, and others' to the same prompts could."""
    asked = [
        answers[candidate]
        for answers in findings.answers
        if any(a.error is None for i, a in enumerate(answers) if i != candidate)
    ]
    failed = [answer for answer in asked if answer.is_failure]
    if not failed or len(failed) < FAILED_SHARE * len(asked):
        return None
    count = "none" if len(failed) == len(asked) else f"only {len(asked) - len(failed)}"
    return f"{count} of its {counted(len(asked), 'answer')} could be computed: {failed[0].error}"


def _loses(findings: Findings, measures: Measures, candidate: int) -> str | None:
    """Its loss is far above the base's, on most texts and on their mean."""
    against = anchor(findings, measures, candidate)
    if against is None or against == candidate:
        return None
    own, base = both(measures.loss, candidate, against, range(len(findings.cases)))
    where = ""
    if not len(own):
        own, base = _imitation(findings, candidate, against)
        where = f" on the answers of {spoken(findings, findings.terms.reference)}"
    if len(own) < MIN_PROMPTS or np.median(own - base) < BROKEN_NATS:
        return None
    excess = float((own - base).mean())
    if excess < BROKEN_NATS:
        return None
    name = "the base" if findings.candidates[against].role == "base" else spoken(findings, against)
    return f"its loss is {excess:.1f} nats above {name}'s{where}"


def _imitation(findings: Findings, candidate: int, against: int) -> tuple[Array, Array]:
    """Losses of both on the reference candidate's answers, where it is neither of them: its own
    words are likely to itself.
    """
    if findings.terms.reference in (candidate, against):
        return np.empty(0), np.empty(0)
    pairs = []
    for case in range(len(findings.cases)):
        text = findings.text(case, "reference", candidate)
        pair = (None, None) if text is None else (text.loss(candidate), text.loss(against))
        if None not in pair:
            pairs.append(pair)
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _has_nothing_right(
    findings: Findings, measures: Measures, specialists: Specialists, candidate: int
) -> str | None:
    """No right answer, where its own sources alone have nearly all."""
    who = findings.candidates[candidate]
    if who.role not in MERGED:
        return None
    pairs, names = [], {}
    for case in findings.cases:
        specialist = specialists.get(case.tag)
        if specialist is not None and findings.candidates[specialist].name in who.sources:
            names[specialist] = findings.candidates[specialist].name
            pairs.append(measures.score[case.index, [candidate, specialist]])
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    own, best = values[np.isfinite(values).all(axis=1)].T
    if not len(own) or own.any() or best.mean() < SPECIALISTS_SCORE:
        return None
    right = np.round(best)  # a score of half counts as right or wrong
    if mcnemar(own, right).p_value > MAX_P_VALUE:
        return None
    total, num_right = len(own), int(right.sum())
    alone = f"its source {next(iter(names.values()))} alone"
    if len(names) > 1:
        alone = f"its sources alone ({', '.join(names.values())}), each on its own tag,"
    return f"0 of {total} right, {alone} {num_right} of {total}"


def _says_nothing(findings: Findings, measures: Measures, candidate: int) -> str | None:
    """Every answer is empty or repeats itself, none is right, and others have more to say."""
    said = [row[candidate] for row in findings.answers if row[candidate].error is None]
    if len(said) < MIN_PROMPTS or bool((measures.score[:, candidate] > 0).any()):
        return None
    if all(is_degenerate(a.token_ids) for a in said) and _others_talk(findings, candidate):
        begin = " ".join(said[0].text.split())[:24].strip()
        return f"all {len(said)} answers repeat themselves ({begin!r}\N{HORIZONTAL ELLIPSIS})"
    if not any(a.text.strip() for a in said) and _others_talk(findings, candidate):
        return f"all {len(said)} answers are empty"
    return None


def _others_talk(findings: Findings, candidate: int) -> bool:
    """Whether the base, or most others, mostly say something that does not repeat itself."""
    others: Sequence[int] = [
        i for i, found in enumerate(findings.candidates) if found.role == "base"
    ] or range(len(findings.candidates))
    said = [row[i] for row in findings.answers for i in others if i != candidate]
    talking = [a for a in said if a.text.strip() and not is_degenerate(a.token_ids)]
    return len(talking) > len(said) / 2
