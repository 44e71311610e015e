"""How numbers are written for people, in the Markdown and on the page alike."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from ensemble.statistics import Interval
from server.compare.measures import Basis
from server.compare.report import CandidateReport, Report, Summary

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


HEADER = (
    "candidate", "verdict", "score %", "retention %", "loss", "Mean KLD", "JS", "Same top p %",
    "same answers %", "tokens/s", "first token ms", "KV KiB", "forwards/token",
)  # fmt: skip


def main_row(report: Report, candidate: CandidateReport) -> list[str]:
    """A candidate's cells under HEADER."""
    versus, summary, cost = candidate.versus, candidate.summary, candidate.cost
    on_reference = next(
        (d for d in versus.divergences if d.text == "reference") if versus else iter(()), None
    )
    verdict = "reference" if versus is None else NONE
    if versus is not None and versus.verdict is not None:
        verdict = versus.verdict.advice
    kld = NONE
    if on_reference is not None:
        kld = f"{on_reference.forward_kl:.4f}"
        if math.isfinite(on_reference.forward_kl_error):
            kld += f" ± {on_reference.forward_kl_error:.4f}"
    same = None if versus is None or versus.same_answers is None else 100 * versus.same_answers
    return [
        candidate.name,
        verdict,
        percent(summary.score),
        percent(summary.retention),
        nats(summary.loss),
        kld,
        number(on_reference.js if on_reference else None, 4),
        number(100 * on_reference.same_top if on_reference else None, 1),
        number(same, 1),
        number(cost.tokens_per_second, 1),
        milliseconds(cost.seconds_to_first_token),
        kibibytes(cost.kv_bytes),
        number(cost.forwards_per_token, 1),
    ]


def main_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of all candidates, without columns that hold nothing."""
    rows = [main_row(report, candidate) for candidate in report.candidates]
    used = [index for index in range(len(HEADER)) if any(row[index] != NONE for row in rows)]
    return [HEADER[i] for i in used], [[row[i] for i in used] for row in rows]


def tag_table(report: Report) -> tuple[list[str], list[list[str]]]:
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
    return [*sentences, *_chosen_weights(report)]


def _chosen_weights(report: Report) -> Iterator[str]:
    """For candidates whose weights the prompts chose, their means over each tag's prompts: of a
    route the share that each source got.
    """
    for candidate in report.candidates:
        by_tag: dict[str | None, list[Mapping[str, float]]] = {}
        for prompt in report.prompts:
            if weights := prompt.answers[candidate.index].weights:
                by_tag.setdefault(prompt.tag, []).append(weights)
        if by_tag:
            parts = (_mean_weights(tag, chosen) for tag, chosen in by_tag.items())
            yield f"weights that the prompts chose for {candidate.name}, mean: {'; '.join(parts)}"


def _mean_weights(tag: str | None, chosen: Sequence[Mapping[str, float]]) -> str:
    means = (f"{s} {fmean(weights[s] for weights in chosen):.2f}" for s in chosen[0])
    return f"{'' if tag is None else f'of {tag} '}{', '.join(means)}"
