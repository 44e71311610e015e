"""What the prompts say of a candidate at other margins than the one that was asked for."""

from ensemble.non_inferiority import non_inferiority
from ensemble.verdict import Verdict
from server.compare.findings import Findings
from server.compare.measures import Measures
from server.compare.report import AtMargin
from server.compare.versus import advantages

LADDER = {"score": (0.02, 0.05, 0.1, 0.2), "loss": (0.05, 0.1, 0.2, 0.5)}
"""Margins that people ask for: shares of right answers, and nats per token."""


def other_margins(
    findings: Findings, measures: Measures, verdict: Verdict | None, subject: int
) -> tuple[AtMargin, ...]:
    """The wider margins of the ladder, where the verdict's own decides nothing."""
    if verdict is None or verdict.conclusion != "undecided":
        return ()
    first, second = advantages(findings, measures, subject, findings.terms.reference)
    terms = findings.terms
    found = []
    for margin in LADDER[verdict.metric]:
        if margin > verdict.margin:
            at = non_inferiority(first, second, margin, level=terms.level, seed=terms.seed)
            found.append(AtMargin(margin, at.conclusion, at.num_needed))
    return tuple(found)
