"""A dense delta on the base: the tensors that it changes, over those of the base."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from merging.checkpoint_weights import CheckpointWeights
from merging.source import Weights


@dataclass(frozen=True, eq=False)
class OverlayWeights:
    """What an adapter makes of the whole base, as `Weights`: the tensors `own`, float32, that were
    merged once, in the place of those of `resident`.

    A tied head is among `own` only where it is no longer what the embedding is. `digest` is that of
    the adapter's content and the base's. `reasons`: why the delta is dense. `seconds`: what merging
    took. `path`: the adapter's folder. `base_name`, `base_digest`: what it records of its base.
    """

    digest: str
    own: CheckpointWeights
    resident: Weights
    path: Path
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    base_name: str | None = None
    base_digest: str | None = None

    @property
    def num_bytes(self) -> int:
        """Of the tensors that it changes."""
        return self.own.num_bytes

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {**self.resident.shapes, **self.own.shapes}

    def changes(self, name: str) -> bool:
        """Whether a tensor is another than the base's."""
        return name in self.own.shapes

    def check_unchanged(self) -> None:
        """Raises SourceError if a file with what it changes did so itself since it was opened."""
        self.own.check_unchanged()

    def tensor(self, name: str) -> torch.Tensor:
        return self.own.tensor(name) if self.changes(name) else self.resident.tensor(name)
