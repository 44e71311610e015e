"""A report as Markdown: the verdict and the tables, for a pull request or a chat."""

import re
from collections.abc import Iterator, Sequence

from server.compare.prompt_report import PromptReport
from server.compare.report import Report, Table
from server.compare.wording import explanations, main_table, settings_line, tag_table

SHOWN_CHARACTERS = 160
"""Of a prompt or an answer in the list of the worst."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def to_markdown(report: Report) -> str:
    """The whole report but for single tokens."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    sentence = (
        "no verdict: there is nothing to compare"
        if report.verdict is None
        else (report.verdict.sentence)
    )
    yield f"**{escaped(sentence)}**"
    yield ""
    yield f"{escaped(settings_line(report))}."
    yield ""
    yield from _table(*main_table(report))
    if report.tags:
        yield from ("", "By tag; in brackets what is retained of the specialist's (*) score:", "")
        yield from _table(*tag_table(report))
    if sentences := explanations(report):
        yield ""
        yield from (f"- {escaped(sentence)}" for sentence in sentences)
    yield from _fidelity(report)
    yield from _worst(report)
    for title, lines in (("Errors", report.errors), ("Notes", report.notes)):
        if lines:
            yield from ("", f"{title}:", "")
            yield from (f"- {escaped(line)}" for line in lines)


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
        yield from _table(["statistic", "value"], fidelity_rows(table))


def fidelity_rows(table: Table) -> list[list[str]]:
    """Names and values, with errors where they have some."""
    rows = []
    for row in table.statistics:
        digits = 3 if row.unit else 6
        error = "" if row.error is None else f" ± {row.error:.{digits}f}"
        rows.append([row.name, f"{row.value:.{digits}f}{error}{row.unit and f' {row.unit}'}"])
    return rows


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
        rows.append([str(index), prompt.tag or "", prompt.prompt, *answers])
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
