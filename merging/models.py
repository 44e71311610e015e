"""The models of a recipe by name: adapters, checkpoints and the resident base alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from merging.adapter import Adapter
from merging.adapter_weights import AdapterWeights
from merging.base import Base
from merging.recipe import BASE
from merging.source import AdapterDeltas, CheckpointDeltas, DeltaSource, Weights

Source = Adapter | Weights
"""What a registered source is: an adapter, or the tensors of a full checkpoint."""


@dataclass(frozen=True)
class Models:
    """`sources` by name, and the resident base: its description, and its tensors where its files
    could be mapped.
    """

    base: Base
    resident: Weights | None
    sources: Mapping[str, Source]

    def adapter(self, name: str) -> Adapter | None:
        source = self.sources.get(name)
        return source if isinstance(source, Adapter) else None

    @cached_property
    def adapters(self) -> Mapping[str, Adapter]:
        return {name: s for name, s in sorted(self.sources.items()) if isinstance(s, Adapter)}

    @cached_property
    def checkpoints(self) -> Mapping[str, Weights]:
        return {name: s for name, s in sorted(self.sources.items()) if not isinstance(s, Adapter)}

    @cached_property
    def digests(self) -> Mapping[str, str]:
        return {name: source.digest for name, source in self.sources.items()}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor of the resident base, a tied head's too."""
        assert self.resident is not None, "the base's files are not mapped"
        shapes = dict(self.resident.shapes)
        return shapes | {head: shapes[embedding] for head, embedding in self.tied.items()}

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """The head and the embedding that it is tied to, by the names of their tensors; none if the
        files have a head of its own.
        """
        if self.resident is None:
            return {}
        shapes = self.resident.shapes
        return {
            head: embedding
            for head, embedding in self.base.ties.items()
            if head not in shapes and embedding in shapes
        }

    def base_tensor(self, name: str) -> torch.Tensor | None:
        """A tensor of the resident base; a tied head's name gives the embedding. None if the base
        has none of the name.
        """
        assert self.resident is not None, "the base's files are not mapped"
        own = self.tied.get(name, name)
        return self.resident.tensor(own) if own in self.resident.shapes else None

    def changes(self, name: str, tensor: str) -> bool:
        """Whether a model's tensor may be another than the resident base's of that name."""
        if name == BASE:
            return False
        adapter = self.adapter(name)
        if adapter is None:
            return True
        return tensor.endswith(".weight") and tensor.removesuffix(".weight") in adapter.factors

    def weights(self, name: str) -> Weights:
        """The tensors of a whole model."""
        assert self.resident is not None, "the base's files are not mapped"
        source = self.resident if name == BASE else self.sources[name]
        if isinstance(source, Adapter):
            return AdapterWeights(source, self.base, self.resident, self.tied)
        return source

    def deltas(self, name: str, on_base: bool) -> DeltaSource:
        """A model as deltas: an adapter's own where they are relative to the resident base's tensor
        of the same name (`on_base`), else those of whole tensors.
        """
        adapter = self.adapter(name)
        if adapter is not None and on_base:
            return AdapterDeltas(adapter, self.base)
        return CheckpointDeltas(self.weights(name))

    def tensor_of(self, name: str, tensor: str) -> str:
        """The name under which a model's files have a tensor: a tied head is its embedding."""
        return tensor if self.changes_head(name, tensor) else self.tied.get(tensor, tensor)

    def changes_head(self, name: str, tensor: str) -> bool:
        """Whether a model has a tied head's tensor apart from the embedding: an adapter on it."""
        return self.adapter(name) is not None and self.changes(name, tensor)


def distinct(adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """Adapters of different content, sorted by digest."""
    return tuple(adapter for _, adapter in sorted({a.digest: a for a in adapters}.items()))
