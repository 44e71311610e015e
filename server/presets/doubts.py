"""Why a source or a preset is likely to write gibberish: from its figures, and from trying it."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from merging.adapter import Adapter, other_base
from merging.base import Base
from merging.doubts import weight_doubt
from merging.models import Source as Content
from merging.plan import Plan
from merging.relation import Relation

MAX_SOURCE_RISE = 3.0
"""Nats a token by which plain text may become less likely under a source, which may be trained to
write nothing but SQL.
"""

MAX_MERGE_RISE = 2.0
MAX_RISE_OVER_SOURCE = 1.0
"""The same of a merge, and beside the worst of its sources."""

MIN_ALIGNMENT = 2.0
"""See `Trial.alignment`: adapters of this base have 2.3 to 13, those of another 0.4 to 1.3."""

MAX_KNOWN = 4096
"""Digests that are remembered, of either kind."""

Known = TypeVar("Known")

LARGE_DELTA = 0.9
"""A checkpoint that changes the base by as much of its norm is doubted, though it is related."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How weights do on `num_tokens` tokens of plain text, beside the base.

    Losses are in nats a token; that of weights whose logits are not finite is infinite.
    `alignment`, of an adapter: how much more it changes what the model says than the same numbers
    do when the channels that it reads and writes are shuffled (see `server.api.alignment`); None
    where that was not asked or cannot be told.
    """

    num_tokens: int
    loss: float
    base_loss: float
    alignment: float | None = None

    @property
    def rise(self) -> float:
        """How much less likely the text is than under the base."""
        return self.loss - self.base_loss


class Doubts:
    """Remembers what is known of contents and of merges, by digest. Safe to use from threads."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._lock = threading.Lock()
        self._relations: dict[str, Relation] = {}
        self._trials: dict[str, Trial] = {}

    def note_relation(self, digest: str, relation: Relation) -> None:
        """Note how a checkpoint is related to the base."""
        with self._lock:
            self._relations[digest] = relation
            _forget_oldest(self._relations)

    def note_trial(self, digest: str, trial: Trial) -> None:
        """Note how a source or a merge did."""
        with self._lock:
            self._trials[digest] = trial
            _forget_oldest(self._trials)

    def relation(self, digest: str) -> Relation | None:
        """How a checkpoint is related to the base, if it was looked at."""
        return self._relations.get(digest)

    def trial(self, digest: str) -> Trial | None:
        """How a source or a merge did, if it was tried."""
        return self._trials.get(digest)

    def of_source(self, content: Content) -> tuple[str, ...]:
        """Why a source is likely to be of another base, or broken."""
        return tuple(self._of_source(content))

    def of_merge(self, plan: Plan) -> tuple[str, ...]:
        """Why a merge is likely to write gibberish."""
        return (*plan.doubts, *self._common(plan, plan.digest))

    def of_ensemble(
        self, plan: Plan, rule: str, coefficients: Mapping[str, float], digest: str
    ) -> tuple[str, ...]:
        """The same of an ensemble of the plan's sources; pools divide by the sum of the weights."""
        doubt = weight_doubt(coefficients) if rule == "task_arithmetic" else None
        return (*(() if doubt is None else (doubt,)), *self._common(plan, digest))

    def _common(self, plan: Plan, digest: str) -> Iterator[str]:
        for name, content in sorted(plan.sources.items()):
            yield from (f"sources.{name}: {doubt}" for doubt in self._of_source(content))
        trial = self._trials.get(digest)
        if trial is None or digest in {content.digest for content in plan.sources.values()}:
            return
        tried = (self._trials.get(content.digest) for content in plan.sources.values())
        worst = max((t.rise for t in tried if t is not None), default=0.0)
        if not trial.rise <= max(MAX_MERGE_RISE, worst + MAX_RISE_OVER_SOURCE):
            yield f"{_told(trial)}: it is likely to write gibberish"

    def _of_source(self, content: Content) -> Iterator[str]:
        trial = self._trials.get(content.digest)
        aligned = trial is not None and (trial.alignment or 0.0) >= MIN_ALIGNMENT
        if isinstance(content, Adapter):
            yield from self._recorded(content, aligned)
        relation = self._relations.get(content.digest)
        if relation is not None and (doubt := relation_doubt(relation)) is not None:
            yield doubt
        if trial is None:
            return
        if trial.alignment is not None and not aligned:
            yield (
                "it was probably trained on another base, or not at all: it changes what the model "
                f"says {trial.alignment:.2g} times as much as its own numbers in shuffled channels "
                f"do, and an adapter of this base at least {MIN_ALIGNMENT:g} times"
            )
        if not trial.rise <= MAX_SOURCE_RISE:
            yield f"{_told(trial)}: it is of another base, or broken"

    def _recorded(self, adapter: Adapter, aligned: bool) -> Iterator[str]:
        """What it records of another base; a name proves less than a trial does."""
        other = other_base(adapter, self._base)
        if other is not None and (adapter.base_digest is not None or not aligned):
            yield other


def _forget_oldest(known: dict[str, Known]) -> None:
    while len(known) > MAX_KNOWN:
        del known[next(iter(known))]


def ensemble_key(label: str) -> str:
    """What the trial of a preset's ensemble is noted under, in place of a digest."""
    return f"{label}:ensemble"


def relation_doubt(relation: Relation) -> str | None:
    """Why a checkpoint is likely to be no fine-tune of the base."""
    figures = (
        f"what it adds to the base has {relation.relative_norm:.2f} of the base's norm, and the "
        f"cosine between the two models' weights is {relation.cosine:.2f}"
    )
    if relation.is_unrelated:
        return f"it is no fine-tune of this base: {figures}"
    if relation.base_is_trained and relation.relative_norm >= LARGE_DELTA:
        return f"it is far from this base: {figures}"
    return None


def _told(trial: Trial) -> str:
    if trial.loss == float("inf"):
        return f"its logits on {trial.num_tokens} tokens of plain text are not finite"
    return (
        f"on {trial.num_tokens} tokens of plain text its loss is {trial.loss:.2f} nats a token, "
        f"and the base's {trial.base_loss:.2f}"
    )
