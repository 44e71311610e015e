"""Who is compared: what generates answers, and what only reads them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from server.compare.case import Case
from server.engine.request import Member, Rule
from server.presets.served import Served

Role = Literal["base", "source", "merge", "ensemble", "route", "previous", "candidate"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that answers prompts. Its `role` says what it is to the preset in question.

    `recipe` says in words what it is made of; `sources` are those that it holds with a weight above
    0.
    """

    name: str
    role: Role
    served: Served
    recipe: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """Something that only reads texts, to explain how candidate number `of` behaves.

    A "twin" is the `task_arithmetic` ensemble of the merge's own coefficients, to which the merge
    is equal up to what is not linear in its deltas. A "without" is the candidate less one `source`.
    """

    kind: Literal["twin", "without"]
    name: str
    of: int
    served: Served
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Voice:
    """A candidate or probe on one prompt: the rows that it runs, and the rule that combines them.

    `rule` is None for a single row; `draw_rule` is what tokens are drawn from, where that differs.
    `weights` are the sources', where the prompt chose them.
    """

    members: tuple[Member, ...]
    rule: Rule | None = None
    draw_rule: Rule | None = None
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        assert len(self.members) == 1 or self.rule is not None, "several members need a rule"


Voices = Callable[[Served, Case], Awaitable[Voice]]
"""Gives the voice of what is served on a prompt; weights from the prompt are found here."""
