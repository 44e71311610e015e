"""The methods' page says what the methods say of themselves."""

from merging.methods import BUILT_IN
from scripts.document_methods import PAGE, page


def test_the_page_is_up_to_date() -> None:
    """`python -m scripts.document_methods` would change nothing."""
    assert PAGE.read_text() == page()


def test_every_method_has_a_heading() -> None:
    lines = PAGE.read_text().splitlines()
    assert [line[4:] for line in lines if line.startswith("### ") and line[4:] in BUILT_IN] == list(
        BUILT_IN
    )
