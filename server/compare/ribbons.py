"""Ribbons: the reference's answer token by token, with what every candidate would have said."""

from collections.abc import Callable, Sequence

import numpy as np

from server.compare.findings import Findings
from server.compare.measures import Measures
from server.compare.prompt_report import Choice, Ribbon, RibbonToken, RibbonVoice
from server.compare.reading import Reading

NUM_RIBBONS = 10

TokenText = Callable[[int], str]


def make_ribbons(
    findings: Findings,
    measures: Measures,
    subject: int,
    worst: Sequence[int],
    token_text: TokenText,
) -> tuple[Ribbon, ...]:
    """The worst prompts first, then those on which the subject drifts most."""
    drift = np.nan_to_num(measures.drift[:, subject])
    order = dict.fromkeys([*worst, *np.argsort(-drift, kind="stable").tolist()])
    ribbons = (_ribbon(findings, subject, case, token_text) for case in order)
    found = [ribbon for ribbon in ribbons if ribbon is not None]
    return tuple(found[:NUM_RIBBONS])


def _ribbon(findings: Findings, subject: int, case: int, token_text: TokenText) -> Ribbon | None:
    reading = findings.text(case, "reference", subject)
    pair = None if reading is None else reading.pairs.get((findings.terms.reference, subject))
    if reading is None or pair is None:
        return None
    tokens = (
        RibbonToken(
            text=token_text(token_id),
            js=float(pair.js[position]),
            same_top=bool(pair.same_top[position]),
            voices=tuple(
                _voice(findings, reading, candidate, position, token_text)
                for candidate in range(len(findings.candidates))
                if candidate in reading.tops
            ),
        )
        for position, token_id in enumerate(reading.token_ids)
    )
    return Ribbon(case, tuple(tokens))


def _voice(
    findings: Findings, reading: Reading, candidate: int, position: int, token_text: TokenText
) -> RibbonVoice:
    tops = reading.tops[candidate]
    pair = reading.pairs.get((findings.terms.reference, candidate))
    return RibbonVoice(
        name=findings.candidates[candidate].name,
        js=None if pair is None else float(pair.js[position]),
        probability=float(np.exp(reading.log_probs[candidate][position])),
        choices=tuple(
            Choice(token_text(int(token_id)), float(probability))
            for token_id, probability in zip(
                tops.token_ids[position], tops.probabilities[position], strict=True
            )
        ),
    )
