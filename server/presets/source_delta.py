"""What is told of a source's content: its kind, how its delta is held, what base it records."""

from dataclasses import dataclass
from typing import Literal

from merging.adapter import Adapter
from merging.checkpoint_weights import CheckpointWeights
from merging.source import Kind
from server.adapters.reader import Content


@dataclass(frozen=True, slots=True)
class SourceDelta:
    """How an adapter's delta is held: as low-rank factors, which blend, or as dense tensors, which
    merges are written with. `reasons`: why. `seconds`: what merging it took, once.
    """

    form: Literal["low_rank", "dense"]
    reasons: tuple[str, ...]
    seconds: float


def recorded_base(content: Content) -> tuple[str | None, str | None]:
    """What an adapter's files say of its base: the digest of its content does not cover it.

    A checkpoint says nothing.
    """
    if isinstance(content, CheckpointWeights):
        return None, None
    return content.base_name, content.base_digest


def kind_of(content: Content) -> Kind:
    """Adapter or checkpoint."""
    return "checkpoint" if isinstance(content, CheckpointWeights) else "adapter"


def delta_of(content: Content) -> SourceDelta | None:
    """How an adapter's delta is held, and what that costs; None for a checkpoint."""
    if isinstance(content, CheckpointWeights):
        return None
    if isinstance(content, Adapter):
        return SourceDelta("low_rank", ("it is a product of two factors on linear layers",), 0.0)
    return SourceDelta("dense", content.reasons, content.seconds)
