"""What models make of one text, token by token, with teacher forcing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from ensemble.statistics import Array

Pair = tuple[int, int]
"""Two voices by number: p, the reference, and q, which is compared with it."""

MAX_NATS = 100.0
"""What an infinite divergence or loss counts as: one impossible token should not be all that a mean
says, and its logarithm is infinite in theory only."""


@dataclass(frozen=True, slots=True)
class PairReading:
    """Divergences of q from p at every position, each [positions]; see `ensemble.divergence`."""

    forward_kl: Array
    reverse_kl: Array
    js: Array
    total_variation: Array
    same_top: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tops:
    """The most likely tokens at every position, best first: both [positions, k]."""

    token_ids: npt.NDArray[np.int64]
    probabilities: Array


@dataclass(frozen=True, slots=True)
class Reading:
    """One text as every voice reads it.

    `log_probs` are those of the text's own tokens, [positions] by voice, in nats. A voice that
    could not read it is in `errors` instead, with the reason.
    """

    token_ids: tuple[int, ...]
    log_probs: Mapping[int, Array] = field(default_factory=dict)
    pairs: Mapping[Pair, PairReading] = field(default_factory=dict)
    tops: Mapping[int, Tops] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)

    def loss(self, voice: int) -> float | None:
        """Mean nats per token that a voice loses on the text; None if it has not read it."""
        log_probs = self.log_probs.get(voice)
        return None if log_probs is None else -float(log_probs.mean())


def bounded(values: Array) -> Array:
    """The same with what is infinite counted as MAX_NATS."""
    return np.clip(values, -MAX_NATS, MAX_NATS)


def joined(readings: "list[PairReading]") -> PairReading:
    """All positions of several texts, in order."""
    columns = (
        np.concatenate([getattr(reading, column.name) for reading in readings])
        for column in fields(PairReading)
    )
    return PairReading(*columns)
