"""Counts of magnitudes by their bits: how the k-th largest of many is found without sorting.

The bits of float32 numbers that are not negative sort like the numbers. One pass counts the upper
halves of all, another the lower halves of those near the ranks that are looked for.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Counts = npt.NDArray[np.int64]

HALF = 16  # bits of a magnitude that are counted in one pass
SIZE = 1 << HALF


class UpperHalves:
    """How often each upper half of the bits of magnitudes occurs."""

    def __init__(self) -> None:
        self._counts: Counts = np.zeros(SIZE, dtype=np.int64)

    def count(self, magnitudes: torch.Tensor) -> None:
        """Count magnitudes: flat, float32, none below 0."""
        bits = magnitudes.view(torch.int32)
        # torch, as numpy takes twice as long to count.
        self._counts += torch.bincount(bits >> HALF, minlength=SIZE).numpy()

    def add(self, other: "UpperHalves") -> None:
        """Take over the counts of another one."""
        self._counts += other._counts

    def place(self, rank: int) -> tuple[int, int]:
        """The half that the `rank`-th largest (from 1) has, and its rank among those that have
        it.
        """
        return _place(self._counts, rank)


class LowerHalves:
    """How often each lower half occurs, of magnitudes that have one of some upper `halves`."""

    def __init__(self, halves: Sequence[int]) -> None:
        self._halves = sorted(set(halves))
        # Also of what lies below the first, between two, and above the last.
        self._counts: Counts = np.zeros(len(self._halves) * (SIZE + 1) + 1, dtype=np.int64)

    def count(self, magnitudes: torch.Tensor) -> None:
        """Count magnitudes: flat, float32, none below 0."""
        if not self._halves:
            return
        bits = magnitudes.view(torch.int32)
        # numpy takes ten times as long to pick out a half: instead all others are counted too.
        # Each half before an element's own adds SIZE, its own the lower half, those after it -1.
        places = torch.full_like(bits, len(self._halves))
        for half in self._halves:
            places += (bits - (half << HALF)).clamp_(-1, SIZE)
        self._counts += torch.bincount(places, minlength=len(self._counts)).numpy()

    def add(self, other: "LowerHalves") -> None:
        """Take over the counts of another one for the same halves."""
        assert self._halves == other._halves
        self._counts += other._counts

    def magnitude(self, half: int, rank: int) -> float:
        """The `rank`-th largest magnitude (from 1) of those that have this upper half."""
        start = self._halves.index(half) * (SIZE + 1) + 1
        lower, _ = _place(self._counts[start : start + SIZE], rank)
        bits = np.array([half << HALF | lower], dtype=np.int32)
        return float(bits.view(np.float32)[0])


def _place(counts: Counts, rank: int) -> tuple[int, int]:
    """The place of the `rank`-th from the top, and its rank among those at that place."""
    parts = counts.reshape(256, -1)  # as sums are far faster than running ones
    part, within = _from_top(parts.sum(axis=1), rank)
    place, within = _from_top(parts[part], within)
    return part * parts.shape[1] + place, within


def _from_top(counts: Counts, rank: int) -> tuple[int, int]:
    """The last place from which on there are `rank`, and how many of them are at that place."""
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    before = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before
