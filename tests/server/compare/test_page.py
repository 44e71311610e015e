"""The page stands alone, shows what was found, and lets nothing of a model's output act."""

import base64
import dataclasses
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser

import pytest

from server.compare.answer import Answer
from server.compare.findings import Trouble
from server.compare.page import to_html
from server.compare.report import Report
from server.compare.reporting import make_report
from tests.server.compare.synthetic import Planted, PlantedProbe, plant

EVIL = (
    "</script><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>"
    "\"' onmouseover='alert(3)' {{7*7}} &lt;b&gt; <!-- \u2028"
)


class Page(HTMLParser):
    """Elements with their attributes, and text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def text(self) -> str:
        """All that people see."""
        return "".join(data for tag, data in self.texts if tag not in ("script", "style"))


@cache
def evil_report() -> Report:
    """Every string that comes from outside is hostile."""
    findings = plant(
        [Planted(EVIL, "merge"), Planted(EVIL + "2", noise=0.5)], tags=(EVIL,), num_cases=12
    )
    answers = [[dataclasses.replace(a, text=EVIL) for a in row] for row in findings.answers]
    answers[0][1] = Answer(error=EVIL)
    cases = [dataclasses.replace(c, shown=EVIL, reference=EVIL) for c in findings.cases]
    hostile = dataclasses.replace(
        findings, answers=answers, cases=cases, reading_errors=[Trouble(0, EVIL)]
    )
    return make_report(hostile, lambda token_id: EVIL, notes=[EVIL])


@cache
def ordinary_report() -> Report:
    findings = plant(
        [
            Planted("ensemble", "ensemble", {"sql": 0.9, "json": 0.7}, 0.1, 0.04, num_rows=4),
            Planted("base", "base", {"sql": 0.1, "json": 0.2}, 2.0),
            Planted("sql", "source", {"sql": 1.0, "json": 0.1}, 1.2),
            Planted("json", "source", {"sql": 0.0, "json": 0.9}, 1.2),
            Planted("merge", "merge", {"sql": 0.8, "json": 0.7}, 0.6),
            Planted("tutor@6", "previous", {"sql": 0.6, "json": 0.5}, 0.9),
        ],
        tags=("sql", "json"),
        num_cases=30,
        probes=[
            PlantedProbe("twin", 4, 0.3),
            PlantedProbe("without", 4, 0.2, "sql"),
            PlantedProbe("without", 0, 0.2, "sql"),
        ],
    )
    return make_report(findings, lambda token_id: f" w{token_id}", notes=["a note"])


def test_what_models_write_does_nothing() -> None:
    """Hostile text everywhere makes no element, no attribute and no script of its own."""
    html = to_html(evil_report())
    page = Page(html)
    assert "alert(1)</script>" not in html
    assert not [tag for tag, _ in page.elements if tag == "img"]
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "ribbons"}, {}]
    handlers = [n for _, attributes in page.elements for n in attributes if n.startswith("on")]
    assert handlers == []
    assert EVIL.replace("\u2028", "") in page.text().replace("\u2028", "")
    assert "{{7*7}}" in page.text()


def test_hostile_tokens_survive_as_data() -> None:
    """What the ribbon's script reads is what the models wrote."""
    html = to_html(evil_report())
    data = re.search(r'id="ribbons">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    ribbons = json.loads(data[1])
    assert ribbons[0][0]["text"] == EVIL
    assert ribbons[0][0]["voices"][0]["choices"][0]["text"] == EVIL
    assert "<" not in data[1]


@pytest.mark.parametrize("make", [ordinary_report, evil_report])
def test_nothing_is_fetched(make) -> None:
    """No element names an address, and the page's policy forbids to fetch any."""
    page = Page(to_html(make()))
    names = {name for _, attributes in page.elements for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "style", "background"}
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "base")]
    policies = [a for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert (policies[0]["content"] or "").startswith("default-src 'none'; style-src 'sha256-")
    styles = "".join(data for tag, data in page.texts if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_policy_lets_the_pages_own_script_and_style_run() -> None:
    """The digests are those of what stands between the tags, to the byte."""
    html = to_html(ordinary_report())
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in html


def test_what_was_found_is_shown() -> None:
    """The verdict, every candidate, tags, the ribbon of ten prompts, histograms, notes."""
    report = ordinary_report()
    page = Page(to_html(report))
    text = page.text()
    assert report.verdict is not None
    assert report.verdict.sentence in text
    for candidate in report.candidates:
        assert candidate.name in text
    assert "a note" in text
    assert "llama.cpp" in text
    assert report.origin is not None
    assert report.origin.sentence in text
    kinds = [tag for tag, _ in page.elements]
    assert kinds.count("figure") == 5
    ribbons = [a for tag, a in page.elements if a.get("data-ribbon") is not None]
    assert len(ribbons) == 10 * 12
    assert all(a["tabindex"] == "0" for a in ribbons)
    levels = {(a["class"] or "").split()[0] for a in ribbons}
    assert len(levels) > 1
