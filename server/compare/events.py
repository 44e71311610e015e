"""What a comparison tells while it runs."""

from dataclasses import dataclass
from typing import Literal

from server.engine.request import FinishReason

Phase = Literal["answers", "readings"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of one candidate's answer to one prompt."""

    case: int
    candidate: int
    text: str
    finish_reason: FinishReason | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of the answers, or of the readings, are there."""

    phase: Phase
    done: int
    total: int


Event = Piece | Progress
