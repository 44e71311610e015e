"""How the weights of a checkpoint are related to the base's, from a sample of their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, TypeVar

import torch

from merging.source import Weights

Item = TypeVar("Item")

NUM_TENSORS: Final = 48
NUM_ROWS: Final = 64
"""At most so many tensors are looked at, and so many rows of each: a second's work at any size."""

MIN_ROWS, MIN_COLUMNS = 16, 32
"""A smaller tensor says nothing of how even its rows are."""

UNRELATED: Final = 0.2
"""A cosine below: two models that were trained apart have one near 0, a fine-tune of a base whose
weights it changed by as much as half of their norm has 0.9.
"""

RANDOM: Final = 1.5
"""A trained layer's rows differ in norm many times as much as those of random numbers, which is 1.
"""


@dataclass(frozen=True, slots=True)
class Relation:
    """`relative_norm`: of what the checkpoint adds to the base, over the base's own; sqrt(2) for
    unrelated weights of equal size. `cosine`: between the two models' weights. `unevenness`: how
    much the norms of the base's rows differ, in units of what those of random numbers do; None
    where no tensor is large enough to tell.
    """

    relative_norm: float
    cosine: float
    unevenness: float | None

    @property
    def is_unrelated(self) -> bool:
        """Whether the two have nothing in common."""
        return self.cosine < UNRELATED

    @property
    def base_is_trained(self) -> bool:
        """Whether the base is more than random numbers, so that the rest means something."""
        return self.unevenness is not None and self.unevenness > RANDOM


def relate(weights: Weights, resident: Weights) -> Relation | None:
    """Compare a checkpoint with the base's own files; None if they share no matrix, or are zero."""
    dot = own = base = difference = 0.0
    unevenness = []
    for theirs, ours in _samples(weights, resident):
        dot += float((theirs * ours).sum())
        own, base = own + float(theirs.square().sum()), base + float(ours.square().sum())
        difference += float((theirs - ours).square().sum())
        if len(ours) >= MIN_ROWS and ours.shape[1] >= MIN_COLUMNS:
            norms = ours.norm(dim=1)
            unevenness.append(float(norms.std() / norms.mean()) * (2 * ours.shape[1]) ** 0.5)
    if not (own > 0 and base > 0):
        return None
    return Relation(
        relative_norm=(difference / base) ** 0.5,
        cosine=dot / (own * base) ** 0.5,
        unevenness=median(unevenness) if unevenness else None,
    )


def _samples(weights: Weights, resident: Weights) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of matrices that both have, float64 [rows, columns]."""
    shared = [
        name
        for name, shape in resident.shapes.items()
        if len(shape) >= 2 and weights.shapes.get(name) == shape
    ]
    for name in _spread(shared, NUM_TENSORS):
        theirs, ours = (w.tensor(name).flatten(0, -2) for w in (weights, resident))
        rows = torch.tensor(_spread(range(len(ours)), NUM_ROWS))
        yield theirs[rows].double(), ours[rows].double()


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spread."""
    step = max(1.0, len(items) / count)
    return [items[int(index * step)] for index in range(min(count, len(items)))]
