"""Progress is a bar on a terminal and plain lines elsewhere."""

import io
import sys
import time

import pytest

from server.commands import progress, waiting
from server.commands.progress import CountReporter, ProgressReporter


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def test_plain_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line when a step begins, and one for every few seconds that it takes."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    report = ProgressReporter()
    with caplog.at_level("INFO"):
        report("merging", 0, 0)
        report("merging", 25, 100)
        report("merging", 100, 100)
        report("planning", 0, 0)
    assert caplog.messages == ["merging", "merging: 25 %", "planning"]


def test_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal every step has a bar, which is taken away."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    report, counts = ProgressReporter(), CountReporter()
    report("merging", 25, 100)
    counts("answers", 1, 4)
    report.close()
    counts.close()
    assert "merging:   0%" in terminal.getvalue()
    assert "answers:   0%" in terminal.getvalue()


def test_counts_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each quarter."""
    counts = CountReporter()
    for done in range(9):
        counts("answers", done, 8)
    counts.close()
    assert capsys.readouterr().err.splitlines() == [
        f"answers: {done} of 8" for done in (2, 4, 6, 8)
    ]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_waiting(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    """What takes long is told, what does not is not."""
    monkeypatch.setattr(waiting, "SECONDS", 0.02)
    monkeypatch.setattr(sys, "stderr", said := Terminal() if is_terminal else io.StringIO())
    with waiting.waiting("quick"):
        pass
    assert said.getvalue() == ""
    with waiting.waiting("explaining tutor"):
        time.sleep(0.1)
    text = said.getvalue()
    assert text.endswith("\r\033[K") if is_terminal else text == "explaining tutor …\n"
    assert "explaining tutor …" in text
