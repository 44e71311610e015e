"""Edits of sources: every preset that uses one follows, in the same transaction or not at all."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from merging.adapter import Adapter
from merging.errors import SourceError
from server.errors import ConflictError, NotFoundError, UnprocessableError
from server.presets.database import StoreError
from server.presets.editing import Phases
from server.presets.observer import CatalogObserver
from server.presets.planner import Planner
from server.presets.published import Published
from server.presets.record import Edit, now
from server.presets.revising import is_revised, refreshed
from server.presets.snapshot import Preset, Snapshot
from server.presets.sources import Source, SourceRegistry, recorded_base
from server.presets.store import PresetStore

logger = logging.getLogger(__name__)


class SourceEditor:
    """The only writer of sources."""

    def __init__(
        self,
        store: PresetStore,
        registry: SourceRegistry,
        planner: Planner,
        published: Published,
        observer: CatalogObserver,
        *,
        revisions_kept: int,
    ) -> None:
        self._store = store
        self._observer = observer
        self._registry = registry
        self._planner = planner
        self._published = published
        self._revisions_kept = revisions_kept

    def register(self, name: str, path: Path) -> None:
        """Add a source under a free name."""
        self._published.check_free(name, kind="source")  # before the adapter is read, for nothing
        adapter, warnings = self._read(name, path)
        with self._published.lock:
            self._published.check_free(name, kind="source")
            at = now()
            plan = self._planner.plan_source(name, adapter)
            source = Source(name, path, adapter.digest, adapter, plan, at, at, warnings=warnings)
            self._store_source(source, [], at)
            self._publish(source, [])

    def replace(self, name: str, path: Path, edit: Edit) -> list[Preset]:
        """Give a source's name another folder; returns the presets that got a new revision."""
        existing_source(self._published.snapshot, name)
        adapter, warnings = self._read(name, path)
        with self._published.lock:
            current = existing_source(self._published.snapshot, name)
            if _is_current(current, adapter, path):
                return []
            at = now()
            source = replace(
                current,
                path=path,
                digest=adapter.digest,
                adapter=adapter,
                plan=self._planner.plan_source(name, adapter),
                updated_at=at,
                reasons=(),
                warnings=warnings,
            )
            phases = Phases()
            with phases.timed("plan"):
                followers = self._follow(source, _revision_edit(source, edit), at)
            with phases.timed("commit"):
                self._store_source(source, followers, at)
            with phases.timed("publish"):
                self._publish(source, followers)
            self._prune()
        revised = [after for before, after in followers if is_revised(before.head, after)]
        for preset in revised:
            self._observer.preset_edited(preset.record.name, "source", "changed", phases.seconds)
        return revised

    def delete(self, name: str) -> None:
        """Forget a source that no preset uses."""
        with self._published.lock:
            existing_source(self._published.snapshot, name)
            using = [p.record.name for p in self._published.snapshot.presets_using(name)]
            if using:
                raise ConflictError(
                    f"source {name!r} is in use by {', '.join(using)}: take it out of them first",
                    param="name",
                )
            with self._store.writing() as writer:
                writer.delete_source(name)
            sources = dict(self._published.snapshot.sources)
            del sources[name]
            self._published.publish(sources=sources)
            self._prune()

    def _read(self, name: str, path: Path) -> tuple[Adapter, tuple[str, ...]]:
        try:
            return self._registry.read(path)
        except SourceError as error:
            raise UnprocessableError(
                f"source {name!r} cannot be used: {error}", param="path", code="source_refused"
            ) from error

    def _follow(self, source: Source, edit: Edit, at: datetime) -> list[tuple[Preset, Preset]]:
        """Every preset that uses the source before and after; refused if that breaks one."""
        snapshot = self._published.snapshot
        sources = {**snapshot.sources, source.name: source}
        followers, reasons = [], []
        for before in snapshot.presets_using(source.name):
            after = refreshed(before.head, sources, self._planner, edit, at)
            # One that had failed before may have other reasons, and must not stand in the way.
            if after.record.state == "failed" and before.record.state != "failed":
                reasons.append(f"preset {before.record.name!r} {after.record.reasons[0]}")
            followers.append((before, after))
        if reasons:
            raise UnprocessableError(
                f"the new content of source {source.name!r} breaks presets that use it, nothing "
                f"changed: {'; '.join(reasons)}",
                param="path",
            )
        return followers

    def _store_source(
        self, source: Source, followers: Sequence[tuple[Preset, Preset]], at: datetime
    ) -> None:
        assert source.adapter is not None, "what is stored was read"
        self._registry.contents.keep(source.adapter, source.path)
        with self._store.writing() as writer:
            writer.put_source(source.name, source.path, source.digest, at=at)
            for before, after in followers:
                if is_revised(before.head, after):
                    writer.add_revision(after.head, kept=self._revisions_kept)

    def _prune(self) -> None:
        """Forget the contents that nothing names any more."""
        try:
            self._registry.contents.prune(self._store.used_contents())
        except StoreError as error:  # the edit is made, and the next one tries again
            logger.warning("unused contents could not be deleted: %s", error)

    def _publish(self, source: Source, followers: Sequence[tuple[Preset, Preset]]) -> None:
        sources = {**self._published.snapshot.sources, source.name: source}
        self._published.publish([after for _, after in followers], sources=sources)


def existing_source(snapshot: Snapshot, name: str) -> Source:
    """The source of that name, or NotFoundError."""
    source = snapshot.sources.get(name)
    if source is None:
        raise NotFoundError(
            f"there is no source {name!r}; GET /v1/sources lists those that exist", param="name"
        )
    return source


def _is_current(source: Source, adapter: Adapter, path: Path) -> bool:
    if source.adapter is None or source.path != path:
        return False
    same_base = recorded_base(source.adapter) == recorded_base(adapter)
    return same_base and source.digest == adapter.digest


def _revision_edit(source: Source, edit: Edit) -> Edit:
    """The edit of the presets that follow: at once, and saying why."""
    message = f"source {source.name} has new content"
    return replace(
        edit, wait=True, message=f"{message}: {edit.message}" if edit.message else message
    )
