"""An adapter as a whole model: the base's tensors, with the adapter's deltas added."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from merging.adapter import Adapter
from merging.base import Base
from merging.digest import json_digest
from merging.source import AdapterDeltas, Weights


@dataclass(frozen=True)
class AdapterWeights:
    """The tensors of `adapter` merged into the base's `weights`, as `Weights`.

    `tied` maps the head's tensor to the embedding that it is tied to. Tensors that the adapter
    changes are made anew at every call, in float32.
    """

    adapter: Adapter
    base: Base
    weights: Weights
    tied: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        return json_digest([self.weights.digest, self.adapter.digest])

    @cached_property
    def _deltas(self) -> AdapterDeltas:
        return AdapterDeltas(self.adapter, self.base)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes = self.weights.shapes
        heads = {head: shapes[own] for head, own in self.tied.items() if self._deltas.touches(head)}
        return {**shapes, **heads}

    def tensor(self, name: str) -> torch.Tensor:
        own = self.weights.tensor(self.tied.get(name, name))
        return own.float() + self._deltas.delta(name, own) if self._deltas.touches(name) else own


@dataclass(frozen=True)
class StackedWeights:
    """Tensors of several models under the names that they have in a stack of their layers.

    `parts`: for each name the model, and its tensor.
    """

    parts: Mapping[str, tuple[Weights, str]]

    @cached_property
    def digest(self) -> str:
        rows = [[name, weights.digest, own] for name, (weights, own) in sorted(self.parts.items())]
        return json_digest(rows)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: weights.shapes[own] for name, (weights, own) in self.parts.items()}

    def tensor(self, name: str) -> torch.Tensor:
        weights, own = self.parts[name]
        return weights.tensor(own)
