"""A diagnosis as one HTML page: a picture for each figure, layers across and kinds of tensor down.

The page needs nothing but itself: no script, no font, no network. Colours are those of the
reader's light or dark scheme; a cell's opacity is its value, so both read alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from merging.diagnosis import Diagnosis, GroupFigures
from merging.wording import shown

CELL = 22  # pixels
LABEL_WIDTH = 190
HEADER = 18

STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1c1d1f; --faint: #6b6f76;
  --line: #dfe1e4; --empty: #f1f2f3; --plus: #1f5fbf; --minus: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --ink: #e9eaec;
  --faint: #9aa0a8; --line: #33373d; --empty: #22262b; --plus: #6ea8ff; --minus: #ff9152; } }
body { background: var(--ground); color: var(--ink); margin: 0 auto; padding: 2rem 1.5rem 4rem;
  max-width: 70rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .2rem; }
p { margin: .2rem 0 .6rem; color: var(--faint); max-width: 46rem; }
.scroll { overflow-x: auto; padding-bottom: .3rem; }
svg { display: block; font: 11px system-ui, sans-serif; fill: var(--faint); }
.frame { fill: var(--empty); } .none { fill: transparent; stroke: var(--line); }
.plus { fill: var(--plus); } .minus { fill: var(--minus); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure of every group.

    `centre`: the value without colour. The value of full colour lies as far from it as the farthest
    that there is, and at least `least`: what is all but nothing is not to look like much.
    """

    title: str
    text: str
    value: Callable[[GroupFigures], float | None]
    centre: float = 0.0
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Values `centre - reach` and `centre + reach` have full colour."""

    centre: float
    reach: float


def page(diagnosis: Diagnosis, *, title: str, subtitle: str) -> str:
    """The whole page. `title` and `subtitle` are plain text."""
    pictures = "".join(_section(picture, diagnosis.groups) for picture in _pictures(diagnosis))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p><code>{escape(subtitle)}</code></p>"
        f"{_summary(diagnosis)}{pictures}</body></html>\n"
    )


def _pictures(diagnosis: Diagnosis) -> Iterator[Picture]:
    yield Picture(
        "Change of the base",
        "Norm of the merged delta over the norm of the base's own weights.",
        lambda group: group.relative_change,
    )
    for index, source in enumerate(diagnosis.total.sources):
        yield Picture(
            f"Contribution of {source.name}",
            "Its share of the merged delta. Orange: it works against it.",
            lambda group, index=index: group.sources[index].contribution,  # type: ignore[misc]
            least=1.0,
        )
    for index, pair in enumerate(diagnosis.total.pairs):
        names = f"{pair.first} and {pair.second}"
        yield Picture(
            f"Cosine of {names}",
            "Between their deltas. Blue: alike; orange: opposed.",
            lambda group, index=index: group.pairs[index].cosine,  # type: ignore[misc]
            least=0.2,
        )
        yield Picture(
            f"Sign conflict of {names}",
            "Of the elements that both change, the share that they push apart. Half of them, which "
            "is chance, has no colour. Blue: more; orange: fewer.",
            lambda group, index=index: group.pairs[index].sign_conflict,  # type: ignore[misc]
            centre=0.5,
            least=0.1,
        )


def _section(picture: Picture, groups: Sequence[GroupFigures]) -> str:
    values = {(group.kind, group.layer): picture.value(group) for group in groups}
    distances = [abs(value - picture.centre) for value in values.values() if value is not None]
    scale = Scale(picture.centre, max([picture.least, *distances]) or 1.0)
    most = f" The strongest colour is {scale.centre + scale.reach:.3g}."
    return (
        f"<h2>{escape(picture.title)}</h2><p>{escape(picture.text + most)}</p>"
        f'<div class="scroll">{_svg(values, scale, picture.title)}</div>'
    )


def _svg(values: dict[tuple[str, int | None], float | None], scale: Scale, title: str) -> str:
    """Kinds that stand outside the layers have one cell, in the first column."""
    kinds = list(dict.fromkeys(kind for kind, _ in values))
    layers = sorted({layer for _, layer in values if layer is not None}) or [0]
    column = {layer: index for index, layer in enumerate(layers)}
    width, height = LABEL_WIDTH + CELL * len(layers), HEADER + CELL * len(kinds)
    cells = "".join(
        _cell(kind, layer, column.get(layer, 0) if layer is not None else 0, row, value, scale)
        for row, name in enumerate(kinds)
        for (kind, layer), value in values.items()
        if kind == name
    )
    every = 1 if len(layers) <= 12 else 5
    heads = "".join(
        f'<text x="{LABEL_WIDTH + CELL * (index + 0.5)}" y="12" text-anchor="middle">{layer}</text>'
        for index, layer in enumerate(layers)
        if index % every == 0 or index == len(layers) - 1
    )
    labels = "".join(
        f'<text x="{LABEL_WIDTH - 8}" y="{HEADER + CELL * (row + 0.5) + 4}" text-anchor="end">'
        f"{escape(_short(kind))}</text>"
        for row, kind in enumerate(kinds)
    )
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(title)}">'
        f"{heads}{labels}{cells}</svg>"
    )


def _cell(
    kind: str, layer: int | None, column: int, row: int, value: float | None, scale: Scale
) -> str:
    """A square with what it stands for as its tooltip; only an outline where there is no value."""
    x, y, size = LABEL_WIDTH + CELL * column, HEADER + CELL * row, CELL - 2
    where = escape(kind if layer is None else f"layer {layer}, {kind}")
    box = f'x="{x}" y="{y}" width="{size}" height="{size}" rx="2"'
    if value is None:
        return f'<g><title>{where}: no value</title><rect class="none" {box}/></g>'
    distance = value - scale.centre
    colour = "minus" if distance < 0 else "plus"
    opacity = f"{abs(distance) / scale.reach:.3f}"
    return (
        f'<g><title>{where}: {value:.4g}</title><rect class="frame" {box}/>'
        f'<rect class="{colour}" {box} fill-opacity="{opacity}"/></g>'
    )


def _short(kind: str) -> str:
    return kind if len(kind) <= 28 else f"…{kind[-27:]}"


def _summary(diagnosis: Diagnosis) -> str:
    total = diagnosis.total
    rows = "".join(
        f"<tr><td>{escape(source.name)}</td><td>{number(source.relative_norm)}</td>"
        f"<td>{number(source.cosine)}</td><td>{number(source.contribution)}</td></tr>"
        for source in total.sources
    )
    names = shown([source.name for source in total.sources], limit=20)
    return (
        f"<p>{total.num_elements:,} weights of {len(diagnosis.groups)} groups, merged from "
        f"{escape(names)}. The merge changes the base by {number(total.relative_change)} of its "
        "norm.</p><table><tr><th>source</th><th>norm / base</th><th>cosine with the merge</th>"
        f"<th>contribution</th></tr>{rows}</table>"
    )


def number(value: float | None) -> str:
    """Three digits; a hyphen for none."""
    return "-" if value is None else f"{value:.3g}"
