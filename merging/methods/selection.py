"""The largest elements of a tensor: exactly k of them, whatever is equal."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from merging.methods.blocks import blocks_of
from merging.methods.histogram import LowerHalves, UpperHalves
from merging.methods.masks import at_least

SMALL = 1 << 15
"""Elements up to which partitioning takes less time than counting by bits."""


class Ranking:
    """The order of the elements of a float32 tensor of any shape, by their magnitudes.

    `ranks`: from 1 for the largest to the number of elements, or 0; those that can be asked for.
    """

    def __init__(self, values: torch.Tensor, *ranks: int) -> None:
        self._shape = values.shape
        self._blocks = blocks_of(values)
        wanted = sorted({rank for rank in ranks if rank})
        find = _partitioned if values.numel() <= SMALL else _counted
        self._magnitudes = {0: math.inf, **find(self._blocks, wanted)}

    def kth(self, k: int) -> float:
        """The k-th largest magnitude, for k of the ranks; infinity for k = 0."""
        return self._magnitudes[k]

    def largest(self, k: int) -> torch.Tensor:
        """A mask of the k largest magnitudes, for k of the ranks, in the tensor's shape; of equal
        ones the first.

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


def _partitioned(blocks: Sequence[torch.Tensor], ranks: Sequence[int]) -> dict[int, float]:
    """The magnitudes of some ranks, by rank."""
    magnitudes = np.concatenate([block.abs().numpy() for block in blocks])
    if ranks:
        magnitudes.partition([len(magnitudes) - rank for rank in ranks])
    return {rank: float(magnitudes[-rank]) for rank in ranks}


def _counted(blocks: Sequence[torch.Tensor], ranks: Sequence[int]) -> dict[int, float]:
    """The same, without a copy of all magnitudes."""
    upper = UpperHalves()
    for block in blocks:
        upper.count(block.abs())
    places = {rank: upper.place(rank) for rank in ranks}
    lower = LowerHalves([half for half, _ in places.values()])
    for block in blocks if places else ():
        lower.count(block.abs())
    return {rank: lower.magnitude(*place) for rank, place in places.items()}


def kth_largest(values: torch.Tensor, k: int) -> float:
    """See `Ranking.kth`."""
    return Ranking(values, k).kth(k)


def largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """See `Ranking.largest`."""
    return Ranking(values, k).largest(k)
