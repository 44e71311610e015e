"""Counts of magnitudes by their bits: how the k-th largest of many is found without sorting."""

import numpy as np
import numpy.typing as npt
import torch

Counts = npt.NDArray[np.int64]

HALF = 16  # bits of a magnitude that are counted in one pass
SIZE = 1 << HALF


class Histogram:
    """How often each upper half of the bits of magnitudes occurs; or, of those with one upper half,
    each lower half.

    The bits of float32 numbers that are not negative sort like the numbers.
    """

    def __init__(self, half: int | None = None) -> None:
        self.half = half
        self._counts: Counts = np.zeros(SIZE, dtype=np.int64)

    def count(self, magnitudes: torch.Tensor) -> None:
        """Count magnitudes: flat, float32, none below 0."""
        bits = magnitudes.view(torch.int32)
        # torch, as numpy takes twice as long to count, and ten times as long to pick out a half:
        # instead all others are counted too, at the two ends.
        if self.half is None:
            self._counts += torch.bincount(bits >> HALF, minlength=SIZE).numpy()
        else:
            places = (bits - (self.half << HALF)).clamp_(-1, SIZE).add_(1)
            self._counts += torch.bincount(places, minlength=SIZE + 2).numpy()[1:-1]

    def add(self, other: "Histogram") -> None:
        """Take over the counts of another one for the same half."""
        assert self.half == other.half
        self._counts += other._counts

    def place(self, rank: int) -> tuple[int, int]:
        """The half that the `rank`-th largest (from 1) has, and its rank among those that have it.

        For an upper half; where lower ones are counted, `rank` is that among them.
        """
        parts = self._counts.reshape(256, -1)  # as sums are far faster than running ones
        part, within = _from_top(parts.sum(axis=1), rank)
        place, within = _from_top(parts[part], within)
        return part * parts.shape[1] + place, within


def _from_top(counts: Counts, rank: int) -> tuple[int, int]:
    """The last place from which on there are `rank`, and how many of them are at that place."""
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    before = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before


def magnitude(upper: int, lower: int) -> float:
    """The number that two halves are the bits of."""
    bits = np.array([upper << HALF | lower], dtype=np.int32)
    return float(bits.view(np.float32)[0])
