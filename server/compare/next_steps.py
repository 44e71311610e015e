"""What to do now, in the words of the command line."""

from collections.abc import Iterator

from ensemble.verdict import Verdict
from server.compare.judgement import Judgement

EXPLAINED = "docs/operations.md, \u201cWhen a merge gives gibberish\u201d, has the usual causes"

USUAL_ELSEWHERE = 0.1
"""The margin that is proposed: 10 points, as studies of this size have it."""


def next_steps(judgement: Judgement) -> Iterator[str]:
    """One or two sentences."""
    broken = judgement.broken_subject
    if broken is not None:
        is_ruined = broken.culprit is not None or set(broken.signs) != {"score"}
        yield from _mend(judgement, broken.culprit) if is_ruined else _improve(judgement)
        return
    guilty = next((found.culprit for found in judgement.broken if found.culprit), None)
    if guilty is not None:
        yield from _mend(judgement, guilty)
    verdict = judgement.verdict
    best = judgement.best_source
    is_worse = best is not None and best.verdict.conclusion == "inferior"
    if is_worse or (verdict is not None and verdict.conclusion == "inferior"):
        yield from _improve(judgement)
    elif verdict is not None and verdict.advice == "undecided":
        yield from _decide(judgement)
    elif verdict is not None and verdict.advice == "ship":
        yield "read its worst prompts in the report before you rely on it"


def _mend(judgement: Judgement, culprit: str | None) -> Iterator[str]:
    preset = _preset(judgement)
    if culprit is not None:
        how = f": mergeserve presets set {preset} {culprit}=0" if preset else ""
        yield f"leave {culprit} out{how}, and see whether it belongs to this base"
    else:
        how = f" (mergeserve presets show {preset})" if preset else ""
        yield f"lower its weights to a sum of about 1, and its lambda to 1{how}; {EXPLAINED}"


def _improve(judgement: Judgement) -> Iterator[str]:
    """Blame where there is some, else the source that does as well alone."""
    blamed = judgement.blame.sentences if judgement.blame else ()
    if blamed:
        yield f"lower the weight of the source that does harm: {blamed[0]}"
    elif judgement.best_source is not None:
        name = judgement.findings.candidates[judgement.best_source.candidate].name
        yield f"raise the weight of {name}, lower the others, and compare again"


def _decide(judgement: Judgement) -> Iterator[str]:
    """More prompts, or a margin at which fewer do."""
    verdict = judgement.verdict
    assert verdict is not None
    decided = [at for at in judgement.margins if at.conclusion != "undecided"]
    reachable = [at for at in judgement.margins if at.num_needed is not None]
    if decided:
        yield f"a wider margin is decided already: {_option(verdict, decided[0].margin)}"
    elif reachable:
        margin = min(reachable, key=lambda at: abs(at.margin - USUAL_ELSEWHERE)).margin
        yield f"add prompts, or allow a wider margin: {_option(verdict, margin)}"
    elif verdict.num_needed is not None:
        yield f"add prompts: about {verdict.num_needed} decide"


def _option(verdict: Verdict, margin: float) -> str:
    size = f"{100 * margin:g} points" if verdict.metric == "score" else f"{margin:g} nats"
    return f"--margin {margin:g} is {size}"


def _preset(judgement: Judgement) -> str | None:
    subject = judgement.findings.candidates[judgement.subject]
    return subject.served.preset
