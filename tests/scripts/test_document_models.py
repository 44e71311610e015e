"""The models' page lists the families that are tried, as they were last found."""

from pathlib import Path

import pytest

from scripts.document_models import BEGIN, HEADER, PAGE, page
from scripts.families import FAMILIES, STATEFUL, VISION_FAMILIES
from scripts.family_trial import Trial, try_family


def rows() -> dict[str, list[str]]:
    """The cells of each family of the page."""
    lines = PAGE.read_text().partition(BEGIN)[2].splitlines()
    cells = [line.strip("| ").split("|") for line in lines if line.startswith("| `")]
    return {first.strip(" `"): [cell.strip() for cell in rest] for first, *rest in cells}


def test_the_page_lists_every_family() -> None:
    """Families that the script tries, and those that are known not to be served, once each."""
    assert set(rows()) == {*FAMILIES, *VISION_FAMILIES, *STATEFUL}
    assert HEADER[0] in PAGE.read_text()


def test_every_family_that_is_tried_is_served_and_says_what_transformers_says() -> None:
    """`tests/server/engine/test_families.py` generates from all of them; the page says the same."""
    found = rows()
    for family in (*FAMILIES, *VISION_FAMILIES):
        served, attention, text, *_ = found[family]
        assert (served, text) == ("yes", "yes")
        assert attention in ("packed", "its own")
    assert all(found[family][0].startswith("no: ") for family in STATEFUL)


def test_a_trial_becomes_a_row() -> None:
    """What is not served or differs says no, and the reason goes to the terminal."""
    trials = [
        Trial("b", "yes", "packed", "yes", "no: log-probabilities differ by 2", "yes"),
        Trial("a", "AForCausalLM cannot be served: it keeps a state"),
    ]
    text = page(trials)
    assert "2 families tried, 1 served" in text
    assert text.index("| `a` | no |") < text.index("| `b` | yes | packed | yes | no | yes |")


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_a_family_is_tried(family: str, tmp_path: Path) -> None:
    """Its text, its adapter and its checkpoint source are compared; all three are right."""
    trial = try_family(family, tmp_path)
    attention = "its own" if family == "bloom" else "packed"
    assert trial == Trial(family, "yes", attention, "yes", "yes", "yes")
