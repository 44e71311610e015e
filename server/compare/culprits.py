"""Which source broke a candidate."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from server.compare.findings import Findings
from server.compare.measures import Measures
from server.compare.report import Sign

MENDED_NATS = 1.0
"""Without the culprit the loss is at most by so much above the base's."""


@dataclass(frozen=True, slots=True)
class Culprits:
    """What is known of everybody: who is `broken`, and what losses are held against."""

    findings: Findings
    measures: Measures
    broken: frozenset[int]
    anchor: int | None


def find_culprit(
    known: Culprits, candidate: int, signs: Collection[Sign]
) -> tuple[str | None, str | None]:
    """The source that broke a candidate, if one is known, and what is to be said of it."""
    sources = known.findings.candidates[candidate].sources
    if not sources:
        return None, None
    alone = {c.name: i for i, c in enumerate(known.findings.candidates) if c.role == "source"}
    guilty = [name for name in sources if alone.get(name) in known.broken]
    if guilty:
        are = "is" if len(guilty) == 1 else "are"
        loss = _loss_without(known, candidate, guilty[0]) if len(guilty) == 1 else None
        mended = "" if loss is None else f", and without it the loss would be {loss:.2f}"
        return guilty[0], f"{' and '.join(guilty)} {are} broken alone as well{mended}"
    for name in sources if "loss" in signs else ():
        loss = _loss_without(known, candidate, name)
        if loss is not None:
            return name, f"without {name} the loss would be {loss:.2f}"
    if set(signs) - {"score"} and all(name in alone for name in sources):
        each = f"its source {sources[0]} alone works" if len(sources) == 1 else "its sources work"
        return None, f"{each}, so its weights or parameters are to blame"
    return None, None


def _loss_without(known: Culprits, candidate: int, source: str) -> float | None:
    """The mean loss of the references without a source, where that mends it."""
    findings = known.findings
    if known.anchor is None:
        return None
    pairs = []
    for index, probe in enumerate(findings.probes):
        if (probe.kind, probe.of, probe.source) != ("without", candidate, source):
            continue
        voice = findings.probe_voice(index)
        for case in range(len(findings.cases)):
            text = findings.text(case, "given", candidate)
            pair = (None, None) if text is None else (text.loss(voice), text.loss(known.anchor))
            if None not in pair:
                pairs.append(pair)
    if not pairs:
        return None
    own, base = np.array(pairs, dtype=np.float64).mean(axis=0)
    return float(own) if own - base <= MENDED_NATS else None
