"""Colours of heat maps tell the values."""

import re

import torch

from merging.diagnosis import Deltas, diagnose
from server.offline.heat_map import page

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
    return page(diagnose(tensors, ["a", "b"]), title="<of>", subtitle="sha256:0")


def test_strength_is_the_value() -> None:
    """The largest change has full colour, half of it half, none none."""
    assert cells(example(), "Change of the base") == [
        ("layer 0, q: 0.5", "plus", "0.500"),
        ("layer 1, q: 1", "plus", "1.000"),
        ("head: 0", "plus", "0.000"),
    ]


def test_signs_have_colours_of_their_own() -> None:
    """Opposed deltas are of the other colour; what has no value is an outline."""
    assert cells(example(), "Cosine of a and b") == [
        ("layer 0, q: 1", "plus", "1.000"),
        ("layer 1, q: -1", "minus", "1.000"),
        ("head: no value", "none", ""),
    ]


def test_chance_has_no_colour() -> None:
    """Of sign conflicts half is the middle."""
    assert [
        (name, opacity) for _, name, opacity in cells(example(), "Sign conflict of a and b")
    ] == [
        ("minus", "1.000"),
        ("plus", "1.000"),
        ("none", ""),
    ]


def test_text_is_escaped() -> None:
    """Names of folders are no markup."""
    assert "&lt;of&gt;" in example()
    assert "<of>" not in example()
