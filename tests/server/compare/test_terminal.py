"""The terminal gets one screen, whatever the report holds."""

import dataclasses

from server.compare.about import About
from server.compare.report import Report
from server.compare.reporting import make_report
from server.compare.terminal import MAX_LINES, WIDTH, to_text
from server.compare.titles import title
from tests.server.compare.synthetic import Planted, plant
from tests.server.compare.test_page import evil_report, ordinary_report


def crowded_report() -> Report:
    """More candidates than fit, with long names and long reasons."""
    others = [Planted(f"a candidate with a long name {n}", noise=0.2) for n in range(14)]
    merge = Planted("merge", "merge", fails="the weights overflow " * 40)
    return make_report(plant([*others, merge], num_cases=12), str)


def test_one_screen_without_markup() -> None:
    """At most 30 lines with those of three files, no wider than the screen, nothing escaped."""
    for report in (ordinary_report(), evil_report(), crowded_report()):
        text = to_text(report)
        lines = text.splitlines()
        assert len(lines) <= MAX_LINES <= 27
        assert max(map(len, lines)) <= WIDTH
        assert all(line.isprintable() for line in lines)
        assert "**" not in text
        assert "\\" not in text


def test_what_matters_is_never_cut() -> None:
    """The headline, the subject's row and the settings are there; the rest is counted."""
    text = to_text(crowded_report())
    assert "BROKEN: the merge is broken: none of its 12 answers could be computed" in text
    assert "merge " in text
    assert "and 7 more in the report" in text
    assert "next: lower its weights" in text
    assert "12 prompts, at most 64 tokens each" in text


def test_titles_tell_reports_apart() -> None:
    """By preset and revision, by the prompts' file, and by the time."""
    report = ordinary_report()
    about = About("tutor@3", "base", "sha256:" + "ab" * 32, 1796095000, "sha256:cd", "held.jsonl")
    named = dataclasses.replace(report, about=about)
    expected = "tutor@3: merge against ensemble on held.jsonl, 2026-12-01 03:16 UTC"
    assert title(named) == expected
    assert to_text(named).splitlines()[0] == expected
    assert title(report) == "merge against ensemble"
