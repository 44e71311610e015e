"""Tables for people at a shell."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; without a header, its line is left out."""
    cells = [[_cell(value) for value in row] for row in ([header, *rows] if header else rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _cell(value: object) -> str:
    """One line without control characters, whatever a preset's message holds."""
    text = "-" if value in (None, "") else str(value)
    return "".join(character if character.isprintable() else " " for character in text)
