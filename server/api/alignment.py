"""Whether an adapter fits its base: told from what it does, beside what its numbers do by chance.

Groups of layers are compared one by one: in a single one a shuffled adapter may hit a channel that
matters, by accident, and in most of them it will not.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import geometric_mean

import torch

from merging.adapter import Adapter
from merging.base import Base, split_layer
from merging.blend import Blend
from merging.shuffled import shuffled

NUM_GROUPS = 6

TARGET_DIVERGENCE = 0.4
MAX_FACTOR = 64.0
"""An adapter is compared at a weight at which all of it changes the base by so many nats, if no
more than so many times its own: what it does is then neither lost in rounding nor all that can be.
"""

MIN_DIVERGENCE = 0.002
"""Nats below which a group of layers does nothing that could be told from rounding."""


def compared(adapter: Adapter, base: Base, divergence: float) -> list[Blend]:
    """Blends that are to be read: for each group of layers the adapter there, and its shuffled
    self. `divergence`: the base's from the whole adapter at weight 1.
    """
    factor = math.sqrt(TARGET_DIVERGENCE / divergence)
    factor = min(max(factor, 1 / MAX_FACTOR), MAX_FACTOR)
    other = shuffled(adapter, base, seed=0)
    return [
        Blend(f"{own.digest} at {factor} in part {part}", (own,), factor * mask[None])
        for part, mask in enumerate(_groups(adapter, base))
        for own in (adapter, other)
    ]


def alignment(divergences: Sequence[float]) -> float | None:
    """How much more the adapter changes than its shuffled self, as the geometric mean over the
    groups, of the base's divergences from the blends of `compared`. None if nothing can be told.
    """
    pairs = zip(divergences[::2], divergences[1::2], strict=True)
    ratios = [
        own / other
        for own, other in pairs
        if own >= MIN_DIVERGENCE and 0 < other < math.inf and own < math.inf
    ]
    return geometric_mean(ratios) if ratios else None


def _groups(adapter: Adapter, base: Base) -> Iterator[torch.Tensor]:
    """The linears that an adapter changes, in groups of layers: float32 [num_modules], 1 or 0.
    What is outside the layers belongs to the last group.
    """
    layers = {name: split_layer(name)[0] for name in adapter.factors}
    numbers = sorted({layer for layer in layers.values() if layer is not None}) or [0]
    count = min(NUM_GROUPS, len(numbers))
    group_of = {layer: index * count // len(numbers) for index, layer in enumerate(numbers)}
    for group in range(count):
        mask = torch.zeros(len(base.linears))
        for name, layer in layers.items():
            own = count - 1 if layer is None else group_of[layer]
            mask[base.module_index[name]] = own == group
        yield mask
