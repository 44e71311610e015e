"""What is to be read first: what is broken, before any margin, and then the verdict."""

from collections.abc import Iterator

from server.compare.judgement import Judgement
from server.compare.next_steps import next_steps
from server.compare.report import Headline, HeadlineAdvice
from server.compare.versus import spoken
from server.compare.wording import margins_sentence


def make_headline(judgement: Judgement) -> Headline:
    """The sentence, what goes with it, and what to do now."""
    advice, sentence = _first(judgement)
    more = [line for line in _more(judgement) if line != sentence]
    return Headline(advice, sentence, tuple(more), tuple(next_steps(judgement)))


def _first(judgement: Judgement) -> tuple[HeadlineAdvice, str]:
    broken, reference = judgement.broken_subject, judgement.findings.terms.reference
    if broken is not None:
        return "broken", broken.sentence
    if _is_worse_than_its_source(judgement):
        best = judgement.best_source
        assert best is not None
        return best.verdict.advice, best.verdict.sentence
    if (hollow := judgement.broken_candidate(reference)) is not None:
        return "none", (
            f"{hollow.sentence}. All are held against it, so their verdicts say nothing"
        )
    if judgement.verdict is not None:
        return judgement.verdict.advice, judgement.verdict.sentence
    return "none", f"no verdict: {_why_none(judgement)}"


def _is_worse_than_its_source(judgement: Judgement) -> bool:
    """Whether its best source alone is better for sure, and the reference does not say so."""
    best, verdict = judgement.best_source, judgement.verdict
    if best is None or best.verdict.conclusion != "inferior":
        return False
    hollow = judgement.broken_candidate(judgement.findings.terms.reference) is not None
    return hollow or verdict is None or verdict.conclusion != "inferior"


def _why_none(judgement: Judgement) -> str:
    findings = judgement.findings
    if len(findings.candidates) == 1:
        return "there is one candidate, and nothing to hold it against"
    failed = [row[judgement.subject].error for row in findings.answers]
    names = spoken(findings, judgement.subject), spoken(findings, findings.terms.reference)
    if errors := [error for error in failed if error is not None]:
        return f"{names[0]} gave {len(failed) - len(errors)} of {len(failed)} answers: {errors[0]}"
    return f"no prompt says anything of both {names[0]} and {names[1]}"


def _more(judgement: Judgement) -> Iterator[str]:
    """What else is broken, the other verdict, and what these prompts do say."""
    for found in judgement.broken:
        if found.candidate != judgement.subject:
            yield found.sentence
    if judgement.broken_subject is not None:
        return
    hollow = judgement.broken_candidate(judgement.findings.terms.reference)
    if judgement.verdict is not None and hollow is None:
        yield judgement.verdict.sentence
    best = judgement.best_source
    if best is not None and best.verdict.conclusion != "undecided":
        yield best.verdict.sentence
    if judgement.verdict is not None and hollow is None and judgement.margins:
        yield margins_sentence(judgement.verdict, judgement.margins)
