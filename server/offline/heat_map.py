"""A diagnosis as one HTML page: a picture for each figure, layers across and kinds of tensor down.

The page needs nothing but itself: no script, no font, no network. Colours are those of the
reader's light or dark scheme; a cell's opacity is its value, so both read alike. A colour means the
same in every picture of every page: scales are fixed, not those of one merge.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from merging.diagnosis import Diagnosis, GroupFigures
from merging.wording import shown

CELL = 22  # pixels
LABEL_WIDTH = 190
HEADER = 18
GAP = 14
OUTSIDE_WIDTH = 60
DECADES = 3  # of sizes that have a colour

LEGEND = (
    "Colours mean the same in every picture of every page. Change of the base: none at 0.001, full "
    "at 1, a third for each factor of ten. All else: blue is with, orange against, full at 1 and "
    "half at a quarter."
)

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
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } ul { padding-left: 1.2rem; max-width: 46rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure of every group. `strength` is a value's colour, from -1 to 1."""

    title: str
    text: str
    value: Callable[[GroupFigures], float | None]
    strength: Callable[[float], float]


def page(
    diagnosis: Diagnosis, *, title: str, facts: Sequence[tuple[str, str]], reading: Sequence[str]
) -> str:
    """The whole page: `facts` say what was merged, `reading` what the figures mean. Plain text."""
    pictures = "".join(_section(picture, diagnosis.groups) for picture in _pictures(diagnosis))
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(text)}</code></td></tr>"
        for name, text in facts
    )
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in reading)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><ul>{sentences}</ul><table>{rows}</table>"
        f"{_summary(diagnosis)}<p>{escape(LEGEND)}</p>{pictures}</body></html>\n"
    )


def size_strength(value: float) -> float:
    """Colour of a size: none at a thousandth, full at 1, and a third for each factor of ten."""
    return min(1.0, max(0.0, 1 + math.log10(value) / DECADES)) if value > 0 else 0.0


def sign_strength(value: float) -> float:
    """Colour of a figure from -1 to 1, with a root that lets small ones be seen."""
    return math.copysign(min(1.0, math.sqrt(abs(value))), value)


def _pictures(diagnosis: Diagnosis) -> Iterator[Picture]:
    yield Picture(
        "Change of the base",
        "Norm of the merged delta over the norm of the base's own weights.",
        lambda group: group.relative_change,
        size_strength,
    )
    for index, source in enumerate(diagnosis.total.sources):
        yield Picture(
            f"Contribution of {source.name}",
            "Its share of the merged delta. Orange: it works against it.",
            lambda group, index=index: group.sources[index].contribution,  # type: ignore[misc]
            sign_strength,
        )
    for index, pair in enumerate(diagnosis.total.pairs):
        names = f"{pair.first} and {pair.second}"
        yield Picture(
            f"Cosine of {names}",
            "Between their deltas. Blue: alike; orange: opposed.",
            lambda group, index=index: group.pairs[index].cosine,  # type: ignore[misc]
            sign_strength,
        )
        yield Picture(
            f"Sign conflict of {names}",
            "Of the elements that both change, the share that they push apart. Half of them, which "
            "is chance, has no colour. Blue: fewer; orange: more.",
            lambda group, index=index: group.pairs[index].sign_conflict,  # type: ignore[misc]
            lambda value: sign_strength(1 - 2 * value),
        )


def _section(picture: Picture, groups: Sequence[GroupFigures]) -> str:
    return (
        f"<h2>{escape(picture.title)}</h2><p>{escape(picture.text)}</p>"
        f'<div class="scroll">{_svg(picture, groups)}</div>'
    )


def _svg(picture: Picture, groups: Sequence[GroupFigures]) -> str:
    """A row for each kind. Kinds that stand outside the layers have a column of their own."""
    rows = {kind: index for index, kind in enumerate(dict.fromkeys(g.kind for g in groups))}
    layers = sorted({group.layer for group in groups if group.layer is not None})
    places: dict[int | None, float] = {
        layer: LABEL_WIDTH + CELL * index for index, layer in enumerate(layers)
    }
    places[None] = LABEL_WIDTH + CELL * len(layers) + (GAP if layers else 0)
    cells = "".join(
        _cell(picture, group, places[group.layer], HEADER + CELL * rows[group.kind])
        for group in groups
    )
    width = LABEL_WIDTH + CELL * len(layers) + GAP + OUTSIDE_WIDTH
    return (
        f'<svg width="{width}" height="{HEADER + CELL * len(rows)}" role="img" '
        f'aria-label="{escape(picture.title)}">'
        f"{_heads(layers, places, groups)}{_labels(rows)}{cells}</svg>"
    )


def _heads(
    layers: Sequence[int], places: Mapping[int | None, float], groups: Sequence[GroupFigures]
) -> str:
    """Numbers of layers; a word over the column of what is in none."""
    every = 1 if len(layers) <= 12 else 5
    heads = "".join(
        f'<text x="{places[layer] + CELL / 2}" y="12" text-anchor="middle">{layer}</text>'
        for index, layer in enumerate(layers)
        if index % every == 0 or index == len(layers) - 1
    )
    if any(group.layer is None for group in groups):
        heads += f'<text x="{places[None]}" y="12">no layer</text>'
    return heads


def _labels(rows: Mapping[str, int]) -> str:
    return "".join(
        f'<text x="{LABEL_WIDTH - 8}" y="{HEADER + CELL * (row + 0.5) + 4}" text-anchor="end">'
        f"{escape(_short(kind))}</text>"
        for kind, row in rows.items()
    )


def _cell(picture: Picture, group: GroupFigures, x: float, y: float) -> str:
    """A square with what it stands for as its tooltip; only an outline where there is no value."""
    size, value = CELL - 2, picture.value(group)
    where = escape(group.kind if group.layer is None else f"layer {group.layer}, {group.kind}")
    box = f'x="{x:g}" y="{y:g}" width="{size}" height="{size}" rx="2"'
    if value is None:
        return f'<g><title>{where}: no value</title><rect class="none" {box}/></g>'
    strength = picture.strength(value)
    colour = "minus" if strength < 0 else "plus"
    return (
        f'<g><title>{where}: {value:.4g}</title><rect class="frame" {box}/>'
        f'<rect class="{colour}" {box} fill-opacity="{abs(strength):.3f}"/></g>'
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
        f"{escape(names)}.</p><table><tr><th>source</th><th>norm / base</th>"
        f"<th>cosine with the merge</th><th>contribution</th></tr>{rows}</table>"
    )


def number(value: float | None) -> str:
    """Three digits; a hyphen for none."""
    return "-" if value is None else f"{value:.3g}"
