"""Revisions that are kept beside the newest: looked up, and planned from what they were made of."""

from collections.abc import Mapping
from dataclasses import replace

from merging.errors import SourceError
from merging.plan import Plan
from server.adapters.reader import Content
from server.errors import NotFoundError, ServiceError, UnavailableError, UnprocessableError
from server.presets.planner import Planner, parse_recipe
from server.presets.record import PresetRecord, StoredRevision
from server.presets.snapshot import Preset, Serving
from server.presets.sources import SourceRegistry
from server.presets.store import PresetStore


class KeptRevisions:
    """Reads old revisions from the store. Their weights are those of the sources' old content."""

    def __init__(
        self,
        store: PresetStore,
        registry: SourceRegistry,
        planner: Planner,
        *,
        revisions_kept: int,
    ) -> None:
        self._store = store
        self._registry = registry
        self._planner = planner
        self._revisions_kept = revisions_kept

    def find(self, preset: Preset, revision: int) -> StoredRevision:
        """A kept revision of a preset; NotFoundError says why it is not there."""
        if revision == preset.record.revision:
            return preset.head
        is_older = 0 < revision < preset.record.revision
        stored = self._store.revision(preset.record.name, revision) if is_older else None
        if stored is None:
            raise self._missing(preset.record, revision)
        return self._as_of(stored, preset)

    def serving(self, preset: Preset, revision: int | None) -> Serving:
        """The revision that a request for a preset gets."""
        serving = preset.serving
        if serving is not None and revision in (None, serving.revision):
            return serving
        if revision in (None, preset.record.revision):
            _check_built(preset.record)
        stored = preset.head if revision is None else self.find(preset, revision)
        return Serving(stored, self.plan(stored))

    def all(self, preset: Preset) -> list[PresetRecord]:
        """The records of every kept revision, newest first."""
        kept = self._store.revisions(preset.record.name)
        older = (stored for stored in kept if stored.record.revision < preset.record.revision)
        return [preset.record, *(self._as_of(stored, preset).record for stored in older)]

    def plan(self, stored: StoredRevision) -> Plan:
        """Compile a revision from the content that it was made of."""
        recipe = parse_recipe(stored.record.document)
        return self._planner.plan(recipe, self._contents(stored))

    def _contents(self, stored: StoredRevision) -> Mapping[str, Content]:
        contents: dict[str, Content] = {}
        reasons = []
        for name, digest in sorted(stored.sources.items()):
            try:
                contents[name] = self._registry.content(digest)
            except SourceError as error:
                reasons.append(f"sources.{name}: {error}")
        if reasons:
            raise UnprocessableError(
                f"{stored.record.label} cannot be called: {'; '.join(reasons)}",
                code="content_gone",
            )
        return contents

    def _missing(self, newest: PresetRecord, revision: int) -> NotFoundError:
        name, counter = newest.name, self._store.counter(newest.name)
        if not 0 < revision <= newest.revision:
            why = f"its newest is {newest.revision}"
        elif counter is not None and revision < counter.first:
            why = f"it was deleted with the preset; the present one began with {counter.first}"
        else:
            why = (
                f"it is no longer kept: the last {self._revisions_kept} are (--revisions-kept), "
                f"and the newest is {newest.revision}"
            )
        return NotFoundError(
            f"preset {name!r} has no revision {revision}: {why}",
            param="revision",
            code="revision_not_found",
        )

    def _as_of(self, stored: StoredRevision, preset: Preset) -> StoredRevision:
        """What an older revision is today, on this base and with the contents that are there.

        One that was overtaken while it was building is built when it is called, like any other.
        """
        record = replace(stored.record, updated_at=preset.record.updated_at)
        if record.state == "building":
            record = replace(record, state="ready")
        reasons = [
            f"sources.{name}: {self._registry.contents.gone(digest)}"
            for name, digest in sorted(stored.sources.items())
            if not self._registry.has(digest)
        ]
        try:
            recipe = parse_recipe(record.document)
            record = replace(record, digest=recipe.digest(stored.sources, self._planner.base))
        except ServiceError as error:
            reasons.append(error.message)
        if reasons:
            record = replace(record, state="failed", reasons=tuple(reasons))
        return replace(stored, record=record)


def _check_built(record: PresetRecord) -> None:
    if record.state == "building":
        raise UnavailableError(f"{record.label} is still building", retry_after=1)
    if record.state == "failed":
        raise UnprocessableError(f"{record.label} cannot be called: {'; '.join(record.reasons)}")
