"""Tables for people at a shell."""

from collections.abc import Sequence

GAP = "  "
LEAST = 6
"""Characters that a column keeps however narrow the table is to be."""


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None
) -> str:
    """Aligned columns; without a header, its line is left out.

    With a `width` the widest columns are shortened until a line fits it.
    """
    cells = [[_cell(value) for value in row] for row in ([header, *rows] if header else rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if width is not None:
        _narrow(widths, width)
    return "\n".join(
        GAP.join(_fit(cell, wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _narrow(widths: list[int], width: int) -> None:
    """Take from the widest column until the line fits."""
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while over > 0 and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
        over -= 1


def _fit(cell: str, width: int) -> str:
    return f"{cell[: width - 1]}…" if len(cell) > width else cell.ljust(width)


def _cell(value: object) -> str:
    """One line without control characters, whatever a preset's message holds."""
    text = "-" if value in (None, "") else str(value)
    return "".join(character if character.isprintable() else " " for character in text)
