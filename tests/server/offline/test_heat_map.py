"""Colours of heat maps tell the values."""

import re

import pytest
import torch

from merging.diagnosis import Deltas, diagnose
from server.offline.heat_map import page, sign_strength, size_strength

ONES = torch.ones(4)
SIGNS = torch.tensor([1.0, 1.0, 1.0, -1.0])


def cells(text: str, title: str) -> list[tuple[str, str, str]]:
    """(tooltip, class, opacity) of the cells of one picture."""
    section = text.split(f"<h2>{title}</h2>")[1].split("</svg>")[0]
    shape = r'<rect class="(none|plus|minus)"[^>]*?(?:fill-opacity="([0-9.]+)"|)/>'
    found = re.findall(rf"<title>([^<]*)</title>.*?{shape}", section)
    return [(tip, name, opacity) for tip, name, opacity in found]


def example() -> str:
    tensors = [
        Deltas("layers.0.q.weight", 2 * ONES, {"a": ONES, "b": ONES}, ONES),
        Deltas("layers.1.q.weight", 2 * ONES, {"a": SIGNS, "b": -SIGNS}, 2 * SIGNS),
        Deltas("head", ONES, {"a": ONES}, 0 * ONES),
    ]
    facts = [("base", "acme/<tiny>"), ("source a", "weight 0.5")]
    return page(
        diagnose(tensors, ["a", "b"]), title="<of>", facts=facts, reading=["Is it the <right> one?"]
    )


def test_strength_is_the_value() -> None:
    """The same on every page: a third of the colour for each factor of ten above a thousandth."""
    assert cells(example(), "Change of the base") == [
        ("layer 0, q: 0.5", "plus", "0.900"),
        ("layer 1, q: 1", "plus", "1.000"),
        ("head: 0", "plus", "0.000"),
    ]
    assert [size_strength(value) for value in (0.0, 1e-9, 0.001, 0.1, 1.0, 7.0)] == pytest.approx(
        [0, 0, 0, 2 / 3, 1, 1]
    )


def test_signs_have_colours_of_their_own() -> None:
    """Opposed deltas are of the other colour; what has no value is an outline."""
    assert cells(example(), "Cosine of a and b") == [
        ("layer 0, q: 1", "plus", "1.000"),
        ("layer 1, q: -1", "minus", "1.000"),
        ("head: no value", "none", ""),
    ]
    assert [sign_strength(value) for value in (-4.0, -0.25, 0.0, 0.01)] == [-1.0, -0.5, 0.0, 0.1]


def test_chance_has_no_colour() -> None:
    """Of sign conflicts half is the middle; more is against, as in every picture."""
    assert [
        (name, opacity) for _, name, opacity in cells(example(), "Sign conflict of a and b")
    ] == [
        ("plus", "1.000"),
        ("minus", "1.000"),
        ("none", ""),
    ]


def test_what_is_in_no_layer_has_a_column_of_its_own() -> None:
    """To the right of the layers."""
    section = example().split("<h2>Change of the base</h2>")[1].split("</svg>")[0]
    places = [float(x) for x in re.findall(r'class="frame" x="([0-9.]+)"', section)]
    assert places[2] > places[1] + 22 > places[0] + 22
    assert "no layer" in section


def test_the_page_says_what_was_merged() -> None:
    """Base, sources and weights, and what the figures mean."""
    text = example()
    assert "acme/&lt;tiny&gt;" in text
    assert "weight 0.5" in text
    assert "Is it the &lt;right&gt; one?" in text


def test_text_is_escaped() -> None:
    """Names of folders are no markup."""
    assert "&lt;of&gt;" in example()
    assert "<of>" not in example()
