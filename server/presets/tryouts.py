"""What can be tried on plain text now: sources and presets whose weights are in memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from merging.base import Base
from merging.blend import Blend
from server.adapters.reader import Content
from server.presets.caller import Caller
from server.presets.doubts import Trial, ensemble_key
from server.presets.published import Published
from server.presets.served import Served
from server.presets.snapshot import Serving


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source's `content`, or else a preset, to be tried as what it is `served` as.

    `keys` are what the trial is noted under.
    """

    keys: tuple[str, ...]
    served: Served
    content: Content | None = None


class Tryouts:
    """Finds what was not tried, and notes how it did."""

    def __init__(self, published: Published, caller: Caller) -> None:
        self._published, self._caller = published, caller
        self._doubts = published.suspects.doubts

    @property
    def merging_base(self) -> Base:
        """The base as merging sees it."""
        return self._published.base

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever something may be new, on any thread."""
        self._published.on_change = call

    def base(self) -> Served:
        """The base."""
        return self._caller.base()

    def blend(self, blend: Blend) -> Served:
        """A blend that nobody can call."""
        base = self.base()
        return replace(base, members=(replace(base.members[0], weights=blend),))

    def sources(self) -> list[Candidate]:
        """The sources that were not tried yet, by name."""
        snapshot = self._published.snapshot
        found = []
        for _, source in sorted(snapshot.sources.items()):
            if source.content is None or self._doubts.trial(source.digest) is not None:
                continue
            served = self._caller.source_at_hand(source)
            if served is not None:
                found.append(Candidate((source.digest,), served, source.content))
        return found

    def presets(self) -> list[Candidate]:
        """The presets that serve, were not tried as they are now, and are more than the base; the
        one that was edited last comes first.
        """
        snapshot = self._published.snapshot
        found = []
        newest = sorted(snapshot.presets.values(), key=lambda p: p.record.created_at, reverse=True)
        for preset in newest:
            if preset.serving is None or self._is_tried(preset.serving):
                continue
            served = self._caller.preset_at_hand(snapshot, preset)
            if served is not None and served.path != "base":
                found.append(Candidate(_keys(served), served))
        return found

    def trial(self, digest: str) -> Trial | None:
        """How a content did, if it was tried."""
        return self._doubts.trial(digest)

    def note(self, candidate: Candidate, trial: Trial) -> None:
        """Remember how a candidate did, and say so if it is suspect."""
        for key in candidate.keys:
            self._doubts.note_trial(key, trial)
        with self._published.lock:
            self._published.suspects.tell(self._published.snapshot)

    def _is_tried(self, serving: Serving) -> bool:
        record = serving.stored.record
        is_ensemble = record.document.mode == "ensemble"
        key = ensemble_key(record.label) if is_ensemble else serving.plan.digest
        return self._doubts.trial(key) is not None


def _keys(served: Served) -> tuple[str, ...]:
    if served.mode == "merge":
        return (served.digest,)
    return ensemble_key(served.label), ensemble_key(served.digest)
