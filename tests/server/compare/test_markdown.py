"""The Markdown says what the report does, whatever is in its texts."""

import re

import pytest

from server.compare.markdown import escaped, to_markdown
from server.compare.reporting import make_report
from tests.server.compare.synthetic import Planted, plant
from tests.server.compare.test_page import evil_report, ordinary_report


def cells(line: str) -> list[str]:
    """A table's cells: what is between bars that are not escaped."""
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


def test_tables_keep_their_shape() -> None:
    """Every row has as many cells as its header, also where texts hold bars and line ends."""
    for report in (ordinary_report(), evil_report()):
        width = 0
        for line in to_markdown(report).splitlines():
            if line.startswith("|"):
                width = width or len(cells(line))
                assert len(cells(line)) == width, line
            else:
                width = 0


def test_the_verdict_comes_first() -> None:
    """Then what it stands on, then the candidates."""
    report = ordinary_report()
    lines = to_markdown(report).splitlines()
    assert report.verdict is not None
    assert lines[0] == f"**{escaped(report.verdict.sentence)}**"
    settings = next(n for n, line in enumerate(lines) if line.startswith("30 prompts, at most 64"))
    header = cells(lines[settings + 2])
    assert [name.strip() for name in header[:4]] == [
        "candidate",
        "against ensemble",
        "score %",
        "retention %",
    ]
    assert [cells(line)[0].strip() for line in lines[settings + 4 : settings + 10]] == [
        candidate.name for candidate in report.candidates
    ]


def test_columns_without_numbers_are_left_out() -> None:
    """Without references there is no score and no loss to show."""
    report = make_report(plant([Planted("a"), Planted("b")], references=False), str)
    header = next(x for x in to_markdown(report).splitlines() if x.startswith("| candidate"))
    assert "score" not in header
    assert "loss" not in header
    assert "Mean KLD" in header


def test_the_table_of_llama_cpp_is_there() -> None:
    """Under its names."""
    text = to_markdown(ordinary_report())
    for name in ("Mean KLD", "99.9% KLD", "RMS Δp", "Same top p", "Mean PPL(merge)/PPL(ensemble)"):
        assert f"| {name} |" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("two\nlines", "two lines"),
        ("<b>*x*</b>", r"\<b\>\*x\*\</b\>"),
        ("[a](http://x)", r"\[a\](http://x)"),
        ("AT&T", "AT&amp;T"),
        ("\x1b[31mred", r"\[31mred"),
    ],
)
def test_text_is_shown_as_it_is(text: str, expected: str) -> None:
    """Nothing that a model writes becomes markup."""
    assert escaped(text) == expected
