"""The subject against its best source alone: an ensemble that holds the same broken source says
nothing of what a merge has lost.
"""

from collections.abc import Collection

import numpy as np

from server.compare.findings import Findings
from server.compare.measures import Measures
from server.compare.report import BestSource
from server.compare.versus import judge


def find_best_source(
    findings: Findings, measures: Measures, subject: int, broken: Collection[int]
) -> BestSource | None:
    """The verdict on the subject against the best of its sources on all prompts; None where none
    of them is compared, or only imitation is measured, of which they are no measure.
    """
    basis = measures.basis
    if basis == "fidelity":
        return None
    sign = 1 if basis == "score" else -1
    values = sign * measures.of(basis)
    held = findings.candidates[subject].sources
    means = {
        index: float(np.nanmean(values[:, index]))
        for index, candidate in enumerate(findings.candidates)
        if candidate.role == "source" and candidate.name in held and index not in broken
        if np.isfinite(values[:, index]).any()
    }
    best = max(means, key=lambda index: means[index], default=None)
    if best in (None, subject, findings.terms.reference):
        return None
    verdict = judge(findings, measures, subject, range(len(findings.cases)), None, against=best)
    return None if verdict is None else BestSource(best, verdict)
