"""How numbers are written for people, in the Markdown and on the page alike."""

import math
from collections.abc import Sequence

from ensemble.statistics import Interval
from ensemble.verdict import Advice, Verdict
from server.compare.about import head
from server.compare.chosen import chosen_weights
from server.compare.measures import Basis
from server.compare.numbering import counted
from server.compare.report import AtMargin, CandidateReport, Report, Summary

NONE = "\N{EN DASH}"

BASES: dict[Basis, str] = {
    "score": "right answers",
    "held_out_loss": "loss of the given references",
    "fidelity": "KL divergence over the reference's answers",
}


def number(value: float | None, digits: int) -> str:
    """Rounded; an en dash where there is none."""
    return NONE if value is None or not math.isfinite(value) else f"{value + 0.0:.{digits}f}"


def percent(interval: Interval | None) -> str:
    """A share with its bounds, in percent: `41.7 (19.3 to 68.0)`."""
    return with_bounds(interval, 100.0, 1)


def nats(interval: Interval | None) -> str:
    """A loss with its bounds: `1.234 (1.102 to 1.388)`."""
    return with_bounds(interval, 1.0, 3)


def with_bounds(interval: Interval | None, factor: float, digits: int) -> str:
    """An estimate, and its bounds where they are known."""
    if interval is None:
        return NONE
    estimate = number(factor * interval.estimate, digits)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return estimate
    low, high = (number(factor * bound, digits) for bound in (interval.low, interval.high))
    return f"{estimate} ({low} to {high})"


def share(interval: Interval | None) -> str:
    """A share in percent without its bounds."""
    return NONE if interval is None else number(100 * interval.estimate, 1)


def milliseconds(seconds: float | None) -> str:
    """A time."""
    return NONE if seconds is None else f"{1000 * seconds:.0f}"


def kibibytes(num_bytes: float) -> str:
    """A size."""
    return f"{num_bytes / 1024:,.0f}"


NOT_INFERIOR: dict[Advice, str] = {
    "ship": "as good",
    "keep": "as good, dearer",
    "weigh": "better, dearer",
    "undecided": "undecided",
}

QUALITY = (
    "score %", "retention %", "loss", "Mean KLD", "JS", "Same top p %", "same answers %",
)  # fmt: skip
COST = ("tokens/s", "first token ms", "KV KiB", "forwards/token")

Columns = tuple[list[str], list[list[str]]]
"""A header, and the rows of all candidates."""


def standing(report: Report, candidate: CandidateReport) -> str:
    """How a candidate does against the reference: `as good`, `worse`, `undecided`, `broken`."""
    if any(found.candidate == candidate.index for found in report.broken):
        return "broken"
    if candidate.versus is None:
        return "reference"
    verdict = candidate.versus.verdict
    if verdict is None or any(found.candidate == report.reference for found in report.broken):
        return NONE  # to be worse or better than what is broken says nothing
    if verdict.conclusion == "inferior":
        return "worse"
    if verdict.advice == "ship" and verdict.difference.low > 0:
        return "better"
    return NOT_INFERIOR[verdict.advice]


def quality_table(report: Report) -> Columns:
    """What candidates are worth, without columns that hold nothing."""
    against = f"against {report.candidates[report.reference].name}"
    rows = [
        [candidate.name, standing(report, candidate), *_quality(candidate)]
        for candidate in report.candidates
    ]
    return _used(["candidate", against, *QUALITY], rows)


def cost_table(report: Report) -> Columns:
    """What their answers took."""
    rows = [[candidate.name, *_cost(candidate)] for candidate in report.candidates]
    return _used(["candidate", *COST], rows)


def identity_table(report: Report) -> Columns:
    """What was compared: revisions, weights and digests."""
    rows = [
        [
            candidate.name,
            candidate.model if candidate.preset is None else _label(candidate),
            candidate.recipe or NONE,
            head(candidate.digest),
        ]
        for candidate in report.candidates
    ]
    return _used(["candidate", "model", "made of", "digest"], rows)


def _label(candidate: CandidateReport) -> str:
    return f"{candidate.preset}@{candidate.revision}, {candidate.mode}"


def _quality(candidate: CandidateReport) -> list[str]:
    versus, summary = candidate.versus, candidate.summary
    on_reference = next(
        (d for d in versus.divergences if d.text == "reference") if versus else iter(()), None
    )
    kld = NONE
    if on_reference is not None:
        kld = f"{on_reference.forward_kl:.4f}"
        if math.isfinite(on_reference.forward_kl_error):
            kld += f" ± {on_reference.forward_kl_error:.4f}"
    same = None if versus is None or versus.same_answers is None else 100 * versus.same_answers
    return [
        percent(summary.score),
        percent(summary.retention),
        nats(summary.loss),
        kld,
        number(on_reference.js if on_reference else None, 4),
        number(100 * on_reference.same_top if on_reference else None, 1),
        number(same, 1),
    ]


def _cost(candidate: CandidateReport) -> list[str]:
    cost = candidate.cost
    return [
        number(cost.tokens_per_second, 1),
        milliseconds(cost.seconds_to_first_token),
        kibibytes(cost.kv_bytes),
        number(cost.forwards_per_token, 1),
    ]


def _used(header: list[str], rows: list[list[str]]) -> Columns:
    used = [index for index in range(len(header)) if any(row[index] != NONE for row in rows)]
    return [header[i] for i in used], [[row[i] for i in used] for row in rows]


def tag_table(report: Report) -> Columns:
    """Candidates by tags: the score with what is retained of the specialist's, or the loss."""
    header = ["candidate", *(f"{tag.tag or 'no tag'} ({tag.num_prompts})" for tag in report.tags)]
    rows = []
    for candidate in report.candidates:
        cells = [candidate.name]
        for tag in report.tags:
            mark = " *" if tag.specialist == candidate.index else ""
            cells.append(_tag_cell(tag.candidates[candidate.index].summary) + mark)
        rows.append(cells)
    return header, rows


def _tag_cell(summary: Summary) -> str:
    if summary.score is None:
        return NONE if summary.loss is None else f"{summary.loss.estimate:.3f} nats"
    cell = share(summary.score)
    if summary.retention is not None:
        cell += f" ({number(100 * summary.retention.estimate, 0)} %)"
    return cell


def settings_line(report: Report) -> str:
    """What the comparison stands on, in one line."""
    scorers = f" by {', '.join(report.scorers)}" if report.scorers else ""
    unit = "points" if report.basis == "score" else "nats"
    factor = 100 if report.basis == "score" else 1
    at_once = min(report.concurrency, report.num_prompts)
    return (
        f"{report.num_prompts} prompts, at most {report.max_tokens} tokens each, "
        f"{at_once} at a time; judged by {BASES[report.basis]}{scorers}, "
        f"margin {report.margin * factor:g} {unit}, {report.level * 100:g} % intervals"
    )


def explanations(report: Report) -> list[str]:
    """Why it came so, in sentences: the sources' part, linearisation and rule, and what weights the
    prompts chose.
    """
    sentences = list(report.blame.sentences) if report.blame else []
    sentences += [report.origin.sentence] if report.origin else []
    return [*sentences, *chosen_weights(report)]


def next_lines(report: Report) -> list[str]:
    """What to do now."""
    return [f"next: {step}" for step in report.headline.next_steps]


def margins_sentence(verdict: Verdict, margins: Sequence[AtMargin]) -> str:
    """What an undecided verdict's prompts do say: the worst that is likely, and other margins."""
    unit, factor = ("points", 100) if verdict.metric == "score" else ("nats", 1)
    digits = 1 if verdict.metric == "score" else 3
    said = [f"within {at.margin * factor:g} {unit}: {_at_margin(at)}" for at in margins]
    low = verdict.difference.low
    if math.isfinite(low):
        worst = number(factor * max(0.0, -low), digits)
        said.insert(0, f"{verdict.candidate} is at most {worst} {unit} worse")
    return f"what {counted(verdict.num_prompts, 'prompt')} do say: {'; '.join(said)}"


def _at_margin(at: AtMargin) -> str:
    if at.conclusion == "undecided":
        return f"about {at.num_needed} prompts needed" if at.num_needed else "too close to call"
    return "yes" if at.conclusion == "non_inferior" else "no"
