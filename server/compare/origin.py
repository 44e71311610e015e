"""Where the difference between a merge and the reference comes from: linearisation, or the rule.

The merge's twin has the same coefficients, but adds logits instead of weights. From the merge to
its twin only that is lost which is not linear in the deltas; from the twin to the reference only
the rule and its coefficients change.
"""

import numpy as np

from ensemble.statistics import Interval, mean_interval
from server.compare.findings import Findings, TextKind
from server.compare.report import Origin, Step
from server.compare.versus import divergence, spoken


def find_origin(findings: Findings) -> Origin | None:
    """The way from the merge over its twin to the reference; None without a twin."""
    for index, probe in enumerate(findings.probes):
        if probe.kind == "twin":
            return _origin(findings, probe.of, findings.probe_voice(index))
    return None


def _origin(findings: Findings, merge: int, twin: int) -> Origin | None:
    reference = findings.terms.reference
    given = any(findings.text(case, "given", merge) for case in range(len(findings.cases)))
    kind: TextKind = "given" if given else "reference"
    steps = [
        _step(findings, name, kind, voice, against)
        for name, voice, against in (
            ("linearisation", merge, twin),
            ("rule", twin, reference),
            ("total", merge, reference),
        )
    ]
    if None in steps:
        return None
    linearisation, rule, total = (step for step in steps if step is not None)
    merged, held_against = findings.candidates[merge].name, spoken(findings, reference)
    sentence = (
        f"{merged} and {held_against} are {total.js:.4f} nats apart (JS, mean over positions): "
        f"{linearisation.js:.4f} between {merged} and the ensemble of its own coefficients, which "
        f"is what adding weights instead of logits costs, and {rule.js:.4f} between that and "
        f"{held_against}, which is what another rule costs"
    )
    return Origin(merge, linearisation, rule, total, sentence)


def _step(findings: Findings, name: str, kind: TextKind, voice: int, against: int) -> Step | None:
    if voice == against:
        return Step(name, kind, 0.0, 0.0, None)
    found = divergence(findings, kind, voice, against)
    if found is None:
        return None
    return Step(name, kind, found.js, found.forward_kl, _loss_change(findings, voice, against))


def _loss_change(findings: Findings, voice: int, against: int) -> Interval | None:
    """The loss of the given references under one voice minus that under the other."""
    losses = []
    for case in range(len(findings.cases)):
        text = findings.text(case, "given", voice)
        pair = (None, None) if text is None else (text.loss(voice), text.loss(against))
        if None not in pair:
            losses.append(pair)
    if not losses:
        return None
    pairs = np.array(losses, dtype=np.float64)  # [cases, 2]
    terms = findings.terms
    return mean_interval(pairs[:, 0] - pairs[:, 1], level=terms.level, seed=terms.seed)
