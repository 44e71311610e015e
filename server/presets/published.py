"""The snapshot that everybody reads, and the lock of those who replace it."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping

from merging.base import Base
from merging.plan import Plan
from merging.variant import VariantPlan
from server.presets.names import is_base, name_taken
from server.presets.observer import CatalogObserver
from server.presets.snapshot import Preset, Snapshot
from server.presets.sources import Source, SourceRegistry
from server.presets.suspects import Suspects
from server.presets.variants import Variants


class Published:
    """Holds the current snapshot. Readers take `snapshot`; writers hold `lock` and publish."""

    def __init__(
        self,
        base: Base,
        registry: SourceRegistry,
        variants: Variants,
        observer: CatalogObserver,
    ) -> None:
        """`on_change` is called after every publication, with the lock."""
        self.lock = threading.RLock()
        self.snapshot = Snapshot()
        self.base = base
        self._registry = registry
        self._variants = variants
        self._observer = observer
        self.suspects = Suspects(registry.doubts, observer)
        self.on_change: Callable[[], None] = lambda: None

    def publish(
        self,
        presets: Iterable[Preset] = (),
        *,
        sources: Mapping[str, Source] | None = None,
        without: str | None = None,
    ) -> None:
        """Replace the snapshot by one with these presets, these sources, and one preset less."""
        presets = tuple(presets)
        changed = self._changed(presets, without)
        self.snapshot = Snapshot(changed, self.snapshot.sources if sources is None else sources)
        if sources is not None:
            contents = (source.content for source in sources.values())
            self._registry.release(content for content in contents if content is not None)
        self._variants.serve(*_variants_of(self.snapshot))
        self._observer.presets_changed(
            {
                name: (preset.serving.revision, preset.serving.plan.digest)
                for name, preset in changed.items()
                if preset.serving is not None
            }
        )
        told = [preset.record.name for preset in presets] + ([without] if without else [])
        self.suspects.tell(self.snapshot, told if sources is None else None)
        self.on_change()

    def check_pinned(self, presets: Iterable[Preset]) -> None:
        """BuildError if the pinned weights would not fit with these presets. Called with the lock.

        What takes no more than now passes: the budget may be smaller than at the last start.
        """
        after = Snapshot(self._changed(presets), self.snapshot.sources)
        self._variants.check_pinned(_pinned(after), _pinned(self.snapshot))

    def pinned_by(self, names: Collection[str]) -> frozenset[str]:
        """The digests of the variants that these presets alone pin: what takes the place of all of
        them need not find room beside these.
        """
        rest = {name: p for name, p in self.snapshot.presets.items() if name not in names}
        before, after = _pinned(self.snapshot), _pinned(Snapshot(rest, self.snapshot.sources))
        return frozenset(plan.digest for plan in before) - {plan.digest for plan in after}

    def _changed(self, presets: Iterable[Preset], without: str | None = None) -> dict[str, Preset]:
        changed = {name: p for name, p in self.snapshot.presets.items() if name != without}
        changed.update({preset.record.name: preset for preset in presets})
        return changed

    def check_free(self, name: str, *, kind: str) -> None:
        """ConflictError if a new preset or source may not have this name."""
        if is_base(name, self.base):
            raise name_taken(name, "the resident base", kind=kind)
        if name in self.snapshot.presets:
            raise name_taken(name, "a preset", kind=kind)
        if name in self.snapshot.sources:
            raise name_taken(name, "a source", kind=kind)


def _variants_of(snapshot: Snapshot) -> tuple[frozenset[str], frozenset[str]]:
    """The digests of the variants that a snapshot serves, and of those that are pinned."""
    plans = [source.plan for source in snapshot.sources.values() if source.plan is not None]
    plans += [plan for preset in snapshot.presets.values() for plan in snapshot.weights_now(preset)]
    return _digests(plans), frozenset(variant.digest for variant in _pinned(snapshot))


def _pinned(snapshot: Snapshot) -> list[VariantPlan]:
    """The plan of every pinned variant."""
    pinned = [
        plan.variant
        for preset in snapshot.presets.values()
        if preset.serving is not None and preset.serving.stored.record.document.pinned
        for plan in snapshot.weights_now(preset)
    ]
    return [variant for variant in pinned if variant is not None]


def _digests(plans: Iterable[Plan]) -> frozenset[str]:
    return frozenset(plan.variant.digest for plan in plans if plan.variant is not None)
