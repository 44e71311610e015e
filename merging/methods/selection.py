"""The largest elements of a tensor: exactly k of them, whatever is equal."""

import math

import numpy as np
import torch

from merging.methods.blocks import blocks_of
from merging.methods.histogram import Histogram, magnitude
from merging.methods.masks import at_least


class Ranking:
    """The order of the elements of a float32 tensor of any shape, by their magnitudes."""

    def __init__(self, values: torch.Tensor) -> None:
        self._shape = values.shape
        self._blocks = blocks_of(values)
        self._upper = Histogram()
        for block in self._blocks:
            self._upper.count(block.abs())

    def kth(self, k: int) -> float:
        """The k-th largest magnitude, k in 1 to their number; infinity for k = 0."""
        if k == 0:
            return math.inf
        half, within = self._upper.place(k)
        lower = Histogram(half)
        for block in self._blocks:
            lower.count(block.abs())
        return magnitude(half, lower.place(within)[0])

    def largest(self, k: int) -> torch.Tensor:
        """A mask of the k largest magnitudes, in the tensor's shape; of equal ones the first.

        Masks for a smaller k are part of those for a larger one.
        """
        threshold = self.kth(k)
        kept = [at_least(block.abs(), threshold).numpy() for block in self._blocks]
        surplus = sum(int(np.count_nonzero(part)) for part in kept) - k
        for block, part in zip(reversed(self._blocks), reversed(kept), strict=True):
            if not surplus:
                break
            equal = np.flatnonzero(block.abs().numpy() == np.float32(threshold))[-surplus:]
            part[equal] = False
            surplus -= len(equal)
        return torch.from_numpy(np.concatenate(kept)).reshape(self._shape)


def kth_largest(values: torch.Tensor, k: int) -> float:
    """See `Ranking.kth`."""
    return Ranking(values).kth(k)


def largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """See `Ranking.largest`."""
    return Ranking(values).largest(k)
