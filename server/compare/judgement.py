"""All that is held for and against the subject of a comparison."""

from dataclasses import dataclass
from functools import cached_property

from ensemble.verdict import Verdict
from server.compare.about import About
from server.compare.best_source import find_best_source
from server.compare.broken import find_broken
from server.compare.findings import Findings
from server.compare.margins import other_margins
from server.compare.measures import Measures
from server.compare.report import AtMargin, BestSource, Blame, Broken
from server.compare.summaries import Specialists


@dataclass(frozen=True)
class Judgement:
    """What is known of the `subject`: its `verdict` against the reference, and all beside it."""

    findings: Findings
    about: About
    subject: int
    verdict: Verdict | None
    broken: tuple[Broken, ...]
    best_source: BestSource | None
    margins: tuple[AtMargin, ...]
    blame: Blame | None

    @cached_property
    def broken_subject(self) -> Broken | None:
        """What shows that the subject is broken."""
        return self.broken_candidate(self.subject)

    def broken_candidate(self, candidate: int) -> Broken | None:
        """What shows that a candidate is broken."""
        return next((found for found in self.broken if found.candidate == candidate), None)


def judge_all(
    findings: Findings,
    measures: Measures,
    specialists: Specialists,
    about: About,
    subject: int,
    verdict: Verdict | None,
    blame: Blame | None,
) -> Judgement:
    """Find what is broken, the best source, and what other margins allow to say."""
    broken = find_broken(findings, measures, specialists)
    indices = {found.candidate for found in broken}
    return Judgement(
        findings=findings,
        about=about,
        subject=subject,
        verdict=verdict,
        broken=broken,
        best_source=find_best_source(findings, measures, subject, indices),
        margins=other_margins(findings, measures, verdict, subject),
        blame=blame,
    )
