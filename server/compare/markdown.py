"""A report as Markdown: the verdict and the tables, for a pull request or a chat."""

import re
from collections.abc import Iterator, Sequence

from server.compare.fidelity_rows import fidelity_rows
from server.compare.prompt_report import PromptReport
from server.compare.report import Report
from server.compare.titles import origin_line, title
from server.compare.wording import (
    cost_table,
    explanations,
    identity_table,
    next_lines,
    quality_table,
    settings_line,
    tag_table,
)

SHOWN_CHARACTERS = 160
"""Of a prompt or an answer in the list of the worst."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def to_markdown(report: Report) -> str:
    """The whole report but for single tokens."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"**{escaped(report.headline.sentence)}**"
    yield ""
    yield from _list((*report.headline.more, *next_lines(report)))
    yield f"{escaped(title(report))}; {escaped(origin_line(report))}."
    yield f"{escaped(settings_line(report))}."
    yield ""
    yield from _table(*quality_table(report))
    if report.tags:
        yield from ("", "By tag; in brackets what is retained of the specialist's (*) score:", "")
        yield from _table(*tag_table(report))
    yield ""
    yield from _list(explanations(report))
    yield from _table(*cost_table(report))
    yield ""
    yield from _table(*identity_table(report))
    yield from _fidelity(report)
    yield from _worst(report)
    for heading, lines in (("Errors", report.errors), ("Notes", report.notes)):
        if lines:
            yield from ("", f"{heading}:", "")
            yield from (f"- {escaped(line)}" for line in lines)


def _list(lines: Sequence[str]) -> Iterator[str]:
    """Items, and the empty line that ends them; nothing without items."""
    yield from (f"- {escaped(line)}" for line in lines)
    if lines:
        yield ""


def _fidelity(report: Report) -> Iterator[str]:
    """The subject's table in llama.cpp's words."""
    versus = report.candidates[report.subject].versus
    for table in versus.tables if versus else ():
        where = "given references" if table.text == "given" else "reference's answers"
        names = (report.candidates[index].name for index in (report.subject, report.reference))
        yield ""
        yield escaped(
            f"{' against '.join(names)}, over {table.num_positions} positions of the {where}:"
        )
        yield ""
        yield from _table(["statistic", "value"], fidelity_rows(report, table))


def _worst(report: Report) -> Iterator[str]:
    versus = report.candidates[report.subject].versus
    if versus is None or not versus.worst:
        return
    names = [report.candidates[index].name for index in (report.subject, report.reference)]
    yield from ("", "The worst prompts:", "")
    rows = []
    for index in versus.worst:
        prompt: PromptReport = report.prompts[index]
        answers = [prompt.answers[i].text for i in (report.subject, report.reference)]
        rows.append([str(index + 1), prompt.tag or "", prompt.prompt, *answers])
    yield from _table(["#", "tag", "prompt", *names], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_cell, header))} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    shown = (
        text
        if len(text) <= SHOWN_CHARACTERS
        else f"{text[:SHOWN_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    )
    return escaped(shown)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, whatever a model has written."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;"))
