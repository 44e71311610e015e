"""What the engine tells whoever watches it."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.engine.disagreement import Disagreement

if TYPE_CHECKING:
    from server.engine.group import Group


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step. `prefix_queries` and `prefix_hits` are tokens of newly started rows;
    `kv_cache_usage` is from 0 to 1. `num_groups_background` counts running and waiting ones, which
    the two numbers before it do not.
    """

    seconds: float
    num_rows: int
    num_tokens: int
    num_groups_running: int
    num_groups_waiting: int
    num_groups_background: int
    kv_cache_usage: float
    num_preempted: int
    prefix_queries: int
    prefix_hits: int
    active_rank: int


@dataclass(frozen=True, slots=True)
class RequestStats:
    """One request that has ended. `outcome` is `stop`, `length`, `error` or `abort`; times are in
    seconds. `disagreements` are of an ensemble's rows. `is_scored` says that it was given a text to
    read.
    """

    label: str
    path: str
    mode: str
    outcome: str
    prompt_tokens: int
    generation_tokens: int
    queue_seconds: float
    time_to_first_token_seconds: float | None
    inter_token_seconds: tuple[float, ...]
    e2e_seconds: float
    disagreements: tuple[Disagreement, ...] = ()
    is_scored: bool = False
    is_background: bool = False

    @classmethod
    def of(cls, group: "Group") -> "RequestStats":
        """The statistics of a group that ends now."""
        timing, now = group.timing, time.monotonic()
        first = timing.first_token
        return cls(
            label=group.request.label,
            path=group.request.path,
            mode=group.request.mode,
            outcome="abort" if group.aborted else group.finish_reason or "error",
            prompt_tokens=group.rows[0].num_prompt,
            generation_tokens=len(group.output_tokens),
            queue_seconds=(timing.scheduled or now) - timing.arrived,
            time_to_first_token_seconds=None if first is None else first - timing.arrived,
            inter_token_seconds=tuple(timing.inter_token),
            e2e_seconds=now - timing.arrived,
            disagreements=tuple(group.disagreements),
            is_scored=group.request.reader is not None,
            is_background=group.is_background,
        )


class EngineObserver(Protocol):
    """Called on the engine's thread; must not block."""

    def step(self, stats: StepStats) -> None:
        """A step was computed."""

    def finished(self, stats: RequestStats) -> None:
        """A request ended."""
