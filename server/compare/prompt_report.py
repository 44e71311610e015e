"""The part of a report that is about single prompts and single tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.compare.findings import TextKind


@dataclass(frozen=True, slots=True)
class PositionsReport:
    """A candidate and the reference at every position of one text; all lists [positions]."""

    text: TextKind
    candidate: int
    forward_kl: tuple[float, ...]
    reverse_kl: tuple[float, ...]
    js: tuple[float, ...]
    total_variation: tuple[float, ...]
    same_top: tuple[bool, ...]
    logprobs: tuple[float, ...]
    reference_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """One candidate's answer. `first_divergence` is the index of the first token that is not the
    reference's; None if all are. `weights` are the sources', where the prompt chose them.
    """

    candidate: int
    text: str
    tokens: tuple[str, ...]
    finish_reason: str | None
    first_divergence: int | None
    score: float | None
    loss: float | None
    seconds: float
    seconds_to_first_token: float
    num_tokens: int
    num_forwards: int
    weights: Mapping[str, float] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class PromptReport:
    """One prompt and all that was said to it."""

    index: int
    prompt: str
    tag: str | None
    reference: str | None
    answers: tuple[AnswerReport, ...]
    positions: tuple[PositionsReport, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the most likely tokens."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class RibbonVoice:
    """What one candidate makes of one position; `js` is None for the reference."""

    name: str
    js: float | None
    probability: float
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class RibbonToken:
    """One token of the reference's answer. `js` is the subject's."""

    text: str
    js: float
    same_top: bool
    voices: tuple[RibbonVoice, ...]


@dataclass(frozen=True, slots=True)
class Ribbon:
    """The reference's answer to one prompt, token by token."""

    prompt: int
    tokens: tuple[RibbonToken, ...]
