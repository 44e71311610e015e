"""A report for a terminal: one screen of plain text. All else is in the files."""

import textwrap
from collections.abc import Iterator, Sequence

from server.compare.report import CandidateReport, Report
from server.compare.titles import title
from server.compare.wording import NONE, number, settings_line, share, standing

WIDTH = 110
MAX_ROWS = 8
MAX_NAME = 28
MAX_LINES = 27
"""Three of thirty are left for the files that were written."""

BADGES = {
    "ship": "SHIP",
    "keep": "DO NOT SHIP",
    "weigh": "WEIGH IT",
    "undecided": "UNDECIDED",
    "broken": "BROKEN",
    "none": "NO VERDICT",
}


def to_text(report: Report) -> str:
    """The headline, a small table, and what to do next: at most MAX_LINES lines of WIDTH."""
    headline = report.headline
    lines = [
        *_wrapped(title(report), 2),
        "",
        *_wrapped(f"{BADGES[headline.advice]}: {headline.sentence}", 4),
        "",
        *_table(report),
        "",
        *_fitting([*headline.more, *(report.blame.sentences[:1] if report.blame else ())], 3),
        *_fitting([f"next: {step}" for step in headline.next_steps], 3),
        *_wrapped(f"({settings_line(report)}{_left_out(report)})", 2),
    ]
    return "\n".join(lines[:MAX_LINES]) + "\n"


def _left_out(report: Report) -> str:
    counts = (("error", len(report.errors)), ("note", len(report.notes)))
    told = [f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts if count]
    return f"; {' and '.join(told)} in the report" if told else ""


def _table(report: Report) -> Iterator[str]:
    """The reference, the subject, what is broken, and of the others those that come first."""
    important = {report.reference, report.subject, *(b.candidate for b in report.broken)}
    ranked = sorted(range(len(report.candidates)), key=lambda i: (i not in important, i))
    shown = sorted(ranked[:MAX_ROWS])
    against = _name(report.candidates[report.reference].name)
    header = ["candidate", f"against {against}", "right %", "loss", "same answers %", "tokens/s"]
    rows = [_row(report, report.candidates[index]) for index in shown]
    used = [i for i in range(len(header)) if any(row[i] != NONE for row in rows)]
    cells = [[row[i] for i in used] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()[:WIDTH]
    if len(report.candidates) > len(shown):
        yield f"and {len(report.candidates) - len(shown)} more in the report"


def _row(report: Report, candidate: CandidateReport) -> list[str]:
    summary, versus = candidate.summary, candidate.versus
    same = None if versus is None or versus.same_answers is None else 100 * versus.same_answers
    return [
        _name(candidate.name),
        standing(report, candidate),
        share(summary.score),
        number(summary.loss.estimate if summary.loss else None, 3),
        number(same, 0),
        number(candidate.cost.tokens_per_second, 1),
    ]


def _name(text: str) -> str:
    shown = plain(text)
    return shown if len(shown) <= MAX_NAME else f"{shown[: MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _fitting(sentences: Sequence[str], max_lines: int) -> Iterator[str]:
    """The sentences that fit whole, the first one cut if it does not."""
    left = max_lines
    for place, sentence in enumerate(sentences):
        lines = _wrapped(sentence, left if place == 0 else WIDTH)
        if len(lines) > left:
            return
        left -= len(lines)
        yield from lines


def _wrapped(text: str, max_lines: int) -> list[str]:
    return textwrap.wrap(
        plain(text),
        WIDTH,
        max_lines=max_lines,
        placeholder=" \N{HORIZONTAL ELLIPSIS}",
        subsequent_indent="  ",
    )


def plain(text: str) -> str:
    """One line without control characters, whatever a model has written."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
