"""A checkpoint with another vocabulary, its rows in the order of the base's."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from merging.checkpoint_weights import CheckpointWeights
from merging.digest import json_digest
from merging.source import Weights


@dataclass(frozen=True)
class AlignedWeights:
    """The tensors of `weights`, as `Weights`; those with a row for each token, `names`, have the
    rows of `resident`, the base's own tensors: for each of the base's tokens the checkpoint's row
    of that token, and the base's row where it has none.
    """

    weights: CheckpointWeights
    resident: Weights
    names: frozenset[str]

    @cached_property
    def digest(self) -> str:
        return json_digest([self.resident.digest, self.weights.digest])

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        own = self.weights.shapes
        return {**own, **{name: self.resident.shapes[name] for name in self.names & own.keys()}}

    def tensor(self, name: str) -> torch.Tensor:
        own = self.weights.tensor(name)
        if name not in self.names:
            return own
        assert self.weights.vocabulary is not None
        rows = self.weights.vocabulary.rows
        missing = rows < 0
        aligned = own.index_select(0, rows.clamp(min=0))
        if bool(missing.any()):
            base = self.resident.tensor(name)
            dtype = torch.promote_types(own.dtype, base.dtype)  # the base's rows stay exact
            aligned = aligned.to(dtype)
            aligned[missing] = base[missing].to(dtype)
        return aligned
