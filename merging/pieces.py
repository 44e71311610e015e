"""Tensors in pieces that fit a core's cache."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

PIECE: Final = 1 << 18
"""Elements of a piece: small enough that the cores' cache holds several as float32, large enough
that the interpreter's share is small, and that threads rarely wait for it: two threads with pieces
of 64 Ki elements are no faster than one.
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """`size` elements of a flattened matrix from `start` on: some whole rows, or a part of one."""

    start: int
    size: int
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor seen as a matrix whose rows go along the last dimension; a vector is one row."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


@lru_cache(maxsize=64)  # models have few shapes
def pieces_of(matrix: tuple[int, int], size: int = PIECE) -> tuple[Piece, ...]:
    """The pieces of a matrix, in order. Its shape alone decides them, so that sums over pieces do
    not depend on the number of threads.
    """
    num_rows, num_columns = matrix
    if not num_rows or not num_columns:
        return ()
    height, width = max(1, size // num_columns), min(size, num_columns)
    return tuple(
        _piece(
            slice(row, min(row + height, num_rows)),
            slice(column, min(column + width, num_columns)),
            num_columns,
        )
        for row in range(0, num_rows, height)
        for column in range(0, num_columns, width)
    )


def _piece(rows: slice, columns: slice, num_columns: int) -> Piece:
    start = rows.start * num_columns + columns.start
    size = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Piece(start, size, rows, columns)


def split(tensor: torch.Tensor, pieces: Sequence[Piece]) -> tuple[torch.Tensor, ...]:
    """Flat views of a contiguous tensor, one for each piece."""
    # The method itself: torch.split takes as long again to find it.
    return tuple(tensor.reshape(-1).split_with_sizes([piece.size for piece in pieces]))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A buffer, `all` [count, length] float32, and its rows one by one."""

    all: torch.Tensor
    each: tuple[torch.Tensor, ...]


class Scratch(threading.local):
    """Float32 buffers of each thread for itself, kept from piece to piece."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int, int], Rows] = {}
        self._buffers: dict[str, torch.Tensor] = {}

    def rows(self, use: str, count: int, length: int) -> Rows:
        """A buffer for a use, with what it last held. `length`: at most PIECE."""
        key = (use, count, length)
        if key not in self._rows:
            buffer = self._buffers.get(use)
            if buffer is None or buffer.shape[0] < count:
                buffer = self._buffers[use] = torch.empty(count, PIECE)
            part = buffer[:count, :length]
            self._rows[key] = Rows(part, part.unbind())
        return self._rows[key]

    def row(self, use: str, length: int) -> torch.Tensor:
        """A buffer of one row, flat."""
        return self.rows(use, 1, length).each[0]
