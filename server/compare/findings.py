"""All that a comparison found out, before any of it is counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.compare.answer import Answer
from server.compare.candidate import Candidate, Probe
from server.compare.case import Case
from server.compare.reading import Reading

TextKind = Literal["given", "reference", "candidate"]
"""Which text is read: the reference that came with the prompt, the reference candidate's answer, or
the candidate's own."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked for. `margin` None: the metric's usual one; `level` is that of intervals.

    `reference` is the index of the candidate that the others are held against, and `concurrency`
    the number of prompts that each candidate worked on at the same time. `may_change`: nobody named
    the reference, so that another candidate takes its place if it answers nothing.
    """

    reference: int
    margin: float | None = None
    level: float = 0.95
    seed: int = 0
    concurrency: int = 8
    max_tokens: int = 64
    may_change: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong on one prompt, by its index."""

    case: int
    what: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Answers and readings of every prompt.

    `answers` is [cases][candidates]; `readings` has, for every case, each text that was read, by
    its tokens. Voices are numbered: first the candidates, then the probes. `walls` are the seconds
    that each candidate took for all its answers; None where others ran beside it.
    """

    terms: Terms
    cases: Sequence[Case]
    candidates: Sequence[Candidate]
    probes: Sequence[Probe]
    answers: Sequence[Sequence[Answer]]
    readings: Sequence[dict[tuple[int, ...], Reading]]
    walls: Sequence[float | None]
    reading_errors: Sequence[Trouble] = ()

    def text(self, case: int, kind: TextKind, candidate: int) -> Reading | None:
        """The reading of one text, if there is such a text and it was read."""
        if kind == "given":
            token_ids = self.cases[case].reference_ids
        else:
            speaker = self.terms.reference if kind == "reference" else candidate
            token_ids = self.answers[case][speaker].token_ids
        return self.readings[case].get(token_ids) if token_ids else None

    def probe_voice(self, index: int) -> int:
        """The voice of probe number `index`."""
        return len(self.candidates) + index
