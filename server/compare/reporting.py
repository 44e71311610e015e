"""From findings to the report: everything is counted here, and nothing is asked of the engine."""

from collections.abc import Sequence

from server.compare.about import About
from server.compare.blame import find_blame
from server.compare.candidate import Candidate
from server.compare.costs import cost, cost_ratio
from server.compare.details import prompt_report
from server.compare.findings import Findings, Trouble
from server.compare.headline import make_headline
from server.compare.judgement import judge_all
from server.compare.measures import USUAL_MARGIN, Measures, measure
from server.compare.numbering import prompts_named
from server.compare.origin import find_origin
from server.compare.report import CandidateReport, Cost, Report, TagCandidate, TagReport
from server.compare.ribbons import TokenText, make_ribbons
from server.compare.summaries import Specialists, find_specialists, summarize
from server.compare.versus import compare, judge


def make_report(
    findings: Findings,
    token_text: TokenText,
    *,
    positions: bool = True,
    notes: Sequence[str] = (),
    about: About | None = None,
) -> Report:
    """Count what was found. Deterministic: the bootstrap draws under the comparison's seed."""
    terms, measures = findings.terms, measure(findings)
    specialists = find_specialists(findings, measures)
    costs = [cost(findings, candidate) for candidate in range(len(findings.candidates))]
    candidates = tuple(
        _candidate(findings, measures, specialists, costs, index) for index in range(len(costs))
    )
    subject = find_subject(findings.candidates, terms.reference)
    versus = candidates[subject].versus
    scorers = (case.scorer.name for case in findings.cases if case.scorer is not None)
    verdict, blame = None if versus is None else versus.verdict, find_blame(findings)
    judged = judge_all(findings, measures, specialists, about or About(), subject, verdict, blame)
    margin = USUAL_MARGIN[measures.basis] if terms.margin is None else terms.margin
    return Report(
        about=judged.about,
        headline=make_headline(judged),
        broken=judged.broken,
        best_source=judged.best_source,
        margins=judged.margins,
        basis=measures.basis,
        margin=margin,
        level=terms.level,
        seed=terms.seed,
        scorers=tuple(dict.fromkeys(scorers)),
        max_tokens=terms.max_tokens,
        concurrency=terms.concurrency,
        num_prompts=len(findings.cases),
        reference=terms.reference,
        subject=subject,
        verdict=verdict,
        candidates=candidates,
        tags=_tags(findings, measures, specialists, costs),
        blame=blame,
        origin=find_origin(findings),
        ribbons=make_ribbons(
            findings, measures, subject, versus.worst if versus else (), token_text
        ),
        prompts=tuple(
            prompt_report(findings, measures, case.index, token_text, positions=positions)
            for case in findings.cases
        ),
        errors=_told([*_answer_errors(findings), *findings.reading_errors, *measures.errors]),
        notes=tuple(notes),
    )


def find_subject(candidates: Sequence[Candidate], reference: int) -> int:
    """The candidate that the verdict is about: the merge, else the first one beside the reference.

    A comparison of one candidate is about that one.
    """
    others = [index for index in range(len(candidates)) if index != reference]
    merges = [index for index in others if candidates[index].role == "merge"]
    return [*merges, *others, reference][0]


def _candidate(
    findings: Findings,
    measures: Measures,
    specialists: Specialists,
    costs: Sequence[Cost],
    index: int,
) -> CandidateReport:
    reference = findings.terms.reference
    candidate = findings.candidates[index]
    served = candidate.served
    ratio = cost_ratio(costs[index], costs[reference])
    cases = range(len(findings.cases))
    return CandidateReport(
        index=index,
        name=candidate.name,
        role=candidate.role,
        model=served.model,
        preset=served.preset,
        revision=served.revision,
        digest=served.digest,
        mode=served.mode,
        path=served.path,
        recipe=candidate.recipe,
        summary=summarize(findings, measures, specialists, index, cases),
        cost=costs[index],
        versus=None if index == reference else compare(findings, measures, index, ratio),
    )


def _tags(
    findings: Findings, measures: Measures, specialists: Specialists, costs: Sequence[Cost]
) -> tuple[TagReport, ...]:
    """One for each tag, in order; none if there are no tags."""
    if all(case.tag is None for case in findings.cases):
        return ()
    reports = []
    reference = findings.terms.reference
    for tag, specialist in specialists.items():
        cases = [case.index for case in findings.cases if case.tag == tag]
        candidates = tuple(
            TagCandidate(
                candidate=index,
                summary=summarize(findings, measures, specialists, index, cases),
                verdict=None
                if index == reference
                else judge(
                    findings, measures, index, cases, cost_ratio(costs[index], costs[reference])
                ),
            )
            for index in range(len(costs))
        )
        reports.append(TagReport(tag, len(cases), specialist, candidates))
    return tuple(reports)


def _told(troubles: Sequence[Trouble]) -> tuple[str, ...]:
    """One line for what went wrong in the same way on several prompts."""
    by_what: dict[str, set[int]] = {}
    for trouble in troubles:
        by_what.setdefault(trouble.what, set()).add(trouble.case)
    return tuple(f"{prompts_named(sorted(cases))}: {what}" for what, cases in by_what.items())


def _answer_errors(findings: Findings) -> list[Trouble]:
    return [
        Trouble(case.index, f"{candidate.name} gave no answer: {answer.error}")
        for case, answers in zip(findings.cases, findings.answers, strict=True)
        for candidate, answer in zip(findings.candidates, answers, strict=True)
        if answer.error is not None
    ]
