"""How a source's delta is held."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SourceDelta:
    """How an adapter's delta is held: as low-rank factors, which blend, or as dense tensors, which
    merges are written with. `reasons`: why. `seconds`: what merging it took, once.
    """

    form: Literal["low_rank", "dense"]
    reasons: tuple[str, ...]
    seconds: float
