"""A report as one HTML page that stands alone: no network, no library, dark and light.

What models write is not to be trusted: the template escapes everything, the page's own policy lets
no other script or style run than those that it was made with, and nothing may be fetched.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from pydantic_core import to_json

from server.compare.fidelity_rows import fidelity_rows
from server.compare.prompt_report import PromptReport, Ribbon, RibbonToken
from server.compare.report import CandidateReport, Histogram, Report
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

JS_LEVELS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.4)
"""A token is coloured by how many of these its JS divergence reaches, in nats."""

ADVICE = {
    "ship": "ship",
    "keep": "keep the reference",
    "weigh": "weigh the gain against the cost",
    "undecided": "undecided",
    "broken": "broken",
    "none": "no verdict",
}

STANDINGS = {
    "as good": "ship",
    "better": "ship",
    "worse": "keep",
    "broken": "keep",
    "as good, dearer": "weigh",
    "better, dearer": "weigh",
}
"""The colour of each."""

BAR_HEIGHT, BAR_BASE, BAR_STEP, BAR_WIDTH, BAR_LEFT = 66.0, 76.0, 25.0, 21.0, 8.0


@dataclass(frozen=True, slots=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    edge: str
    label: str


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    label: str
    bars: tuple[_Bar, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    shown: str
    level: int
    same_top: bool


@dataclass(frozen=True, slots=True)
class _ShownRibbon:
    prompt: PromptReport
    tokens: tuple[_Token, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    num_positions: int
    num_prompts: int
    rows: list[list[str]]


class _PackageLoader(BaseLoader):
    """Templates beside this file, also from a zip."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, None, None]:
        if template != "page.html":
            raise TemplateNotFound(template)
        return _asset(template), None, None


def to_html(report: Report) -> str:
    """The page."""
    style, script = _asset("page.css"), _asset("page.js")
    environment = Environment(
        loader=_PackageLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    subject, reference = (report.candidates[i].name for i in (report.subject, report.reference))
    return environment.get_template("page.html").render(
        report=report,
        title=title(report),
        origin=origin_line(report),
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        settings=settings_line(report),
        headline=report.headline,
        next_lines=next_lines(report),
        sentences=explanations(report),
        quality=quality_table(report),
        cost=cost_table(report),
        identity=identity_table(report),
        by_tag=tag_table(report),
        histograms=[figure for c in report.candidates if (figure := _figure(c))],
        ribbons=[_shown(report, ribbon) for ribbon in report.ribbons],
        ribbon_data=_data(report.ribbons),
        legend=["0", *(f"{level:g}" for level in JS_LEVELS)],
        tables=_tables(report),
        subject=subject,
        reference=reference,
        ADVICE=ADVICE,
        STANDINGS=STANDINGS,
    )


def _policy(style: str, script: str) -> str:
    """Only this style and this script, and nothing from elsewhere."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _asset(name: str) -> str:
    return (files("server.compare") / "templates" / name).read_text("utf-8")


def _data(ribbons: Sequence[Ribbon]) -> Markup:
    """Tokens as JSON inside a script element, where only `<`, `>`, `&` and `'` need care."""
    tokens = [ribbon.tokens for ribbon in ribbons]
    return htmlsafe_json_dumps(tokens, dumps=lambda value: to_json(value).decode())


def _shown(report: Report, ribbon: Ribbon) -> _ShownRibbon:
    tokens = tuple(
        _Token(_visible(token), sum(token.js >= level for level in JS_LEVELS), token.same_top)
        for token in ribbon.tokens
    )
    return _ShownRibbon(report.prompts[ribbon.prompt], tokens)


def _visible(token: RibbonToken) -> str:
    """A line's end is shown, and still ends it."""
    return token.text.replace("\n", "\N{RETURN SYMBOL}\n")


def _figure(candidate: CandidateReport) -> _Figure | None:
    histogram = None if candidate.versus is None else candidate.versus.histogram
    if histogram is None:
        return None
    label = f"histogram of the JS divergence of {candidate.name} from the reference"
    return _Figure(candidate.name, label, tuple(_bars(histogram)))


def _bars(histogram: Histogram) -> list[_Bar]:
    total, largest = sum(histogram.counts), max(histogram.counts) or 1
    bars = []
    for index, count in enumerate(histogram.counts):
        height = round(BAR_HEIGHT * count / largest, 1)
        low, high = histogram.edges[index : index + 2]
        bars.append(
            _Bar(
                x=BAR_LEFT + BAR_STEP * index,
                y=BAR_BASE - height,
                width=BAR_WIDTH,
                height=height,
                edge=_edge(low),
                label=f"{low:g} to {high:g}: {count} of {total} positions",
            )
        )
    return bars


def _edge(value: float) -> str:
    """Few characters: a bar is narrow."""
    if 0 < value < 0.01:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:g}".replace("0.", ".")


def _tables(report: Report) -> list[_Table]:
    versus = report.candidates[report.subject].versus
    names = [report.candidates[index].name for index in (report.subject, report.reference)]
    where = {"given": "the given references", "reference": "the reference's answers"}
    return [
        _Table(
            f"{' against '.join(names)}, over {where[table.text]}",
            table.num_positions,
            table.num_prompts,
            fidelity_rows(report, table),
        )
        for table in (versus.tables if versus else ())
    ]
