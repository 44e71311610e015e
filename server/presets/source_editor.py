"""Edits of sources: every preset that uses one follows, in the same transaction or not at all."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from merging.checkpoint import Progress
from merging.errors import SourceError
from server.errors import ConflictError, NotFoundError, UnprocessableError
from server.presets.contents import Content, is_unchanged
from server.presets.database import StoreError
from server.presets.editing import Phases
from server.presets.observer import CatalogObserver
from server.presets.planner import Planner
from server.presets.published import Published
from server.presets.record import Edit, now
from server.presets.revising import failed, is_revised, refreshed
from server.presets.snapshot import Preset, Serving, Snapshot
from server.presets.sources import Source, SourceRegistry, recorded_base
from server.presets.store import PresetStore
from server.presets.variants import Variants
from server.presets.workshop import BuildError

logger = logging.getLogger(__name__)


NUM_ATTEMPTS = 3
"""A replacement that edits keep overtaking makes them wait after so many attempts."""


class SourceEditor:
    """The only writer of sources.

    New content is read, and what follows from it planned and built, without any lock. It is then
    committed and published under the lock, if nothing of it was edited meanwhile.
    """

    def __init__(
        self,
        store: PresetStore,
        registry: SourceRegistry,
        planner: Planner,
        published: Published,
        variants: Variants,
        observer: CatalogObserver,
        *,
        revisions_kept: int,
    ) -> None:
        self._store = store
        self._observer = observer
        self._registry = registry
        self._planner = planner
        self._published = published
        self._variants = variants
        self._revisions_kept = revisions_kept

    def register(self, name: str, path: Path, progress: Progress | None = None) -> None:
        """Add a source under a free name."""
        self._published.check_free(name, kind="source")  # before the content is read, for nothing
        content, warnings = self._read(name, path, progress)
        with self._published.lock:
            self._published.check_free(name, kind="source")
            at = now()
            plan = self._planner.plan_source(name, content)
            source = Source(name, path, content.digest, content, plan, at, at, warnings=warnings)
            self._store_source(source, [], at)
            self._publish(source, [])

    def replace(
        self, name: str, path: Path, edit: Edit, progress: Progress | None = None
    ) -> list[Preset]:
        """Give a source's name another folder; returns the presets that got a new revision."""
        existing_source(self._published.snapshot, name)
        content, warnings = self._read(name, path, progress)
        revised = None
        for _ in range(NUM_ATTEMPTS):
            revised = self._attempt(name, path, content, warnings, edit)
            if revised is not None:
                return revised
        with self._published.lock:
            revised = self._attempt(name, path, content, warnings, edit)
        assert revised is not None, "nobody else edits while this thread has the lock"
        return revised

    def _attempt(
        self, name: str, path: Path, content: Content, warnings: tuple[str, ...], edit: Edit
    ) -> list[Preset] | None:
        """Replace a source; None if it, or a preset that uses it, was edited meanwhile."""
        snapshot = self._published.snapshot
        current = existing_source(snapshot, name)
        if _is_current(current, content, path):
            return []
        source = replace(
            current,
            path=path,
            digest=content.digest,
            content=content,
            plan=self._planner.plan_source(name, content),
            updated_at=now(),
            reasons=(),
            warnings=warnings,
        )
        phases = Phases()
        with ExitStack() as stack:
            with phases.timed("plan"):
                followers = self._follow(snapshot, source, _revision_edit(source, edit))
            followers = self._build(source, followers, phases, stack)
            stack.enter_context(self._published.lock)
            if self._has_moved(snapshot, source, followers):
                return None
            try:
                self._published.check_pinned([after for _, after in followers])
            except BuildError as error:
                _refuse(source, error.reasons)
            with phases.timed("commit"):
                self._store_source(source, followers, source.updated_at)
            with phases.timed("publish"):
                self._publish(source, followers)
            self._prune()
        revised = [after for before, after in followers if is_revised(before.head, after)]
        for preset in revised:
            self._observer.preset_edited(preset.record.name, "source", "changed", phases.seconds)
        return revised

    def _has_moved(
        self, snapshot: Snapshot, source: Source, followers: Sequence[tuple[Preset, Preset]]
    ) -> bool:
        """Whether a source, or a preset that uses this one, is not what it was. With the lock."""
        present = self._published.snapshot
        existing_source(present, source.name)
        befores = [before for before, _ in followers]
        return present.sources is not snapshot.sources or not _are_same(
            present.presets_using(source.name), befores
        )

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

    def _read(
        self, name: str, path: Path, progress: Progress | None
    ) -> tuple[Content, tuple[str, ...]]:
        try:
            return self._registry.read(path, progress)
        except SourceError as error:
            raise UnprocessableError(
                f"source {name!r} cannot be used: {error}", param="path", code="source_refused"
            ) from error

    def _follow(
        self, snapshot: Snapshot, source: Source, edit: Edit
    ) -> list[tuple[Preset, Preset]]:
        """Every preset that uses the source before and after; refused if that breaks one."""
        sources = {**snapshot.sources, source.name: source}
        followers, reasons = [], []
        for before in snapshot.presets_using(source.name):
            after = refreshed(before.head, sources, self._planner, edit, source.updated_at)
            if after.record.state == "failed":
                after = failed(after.head, after.record.reasons, before.serving)
            # One that had failed before may have other reasons, and must not stand in the way.
            if after.record.state == "failed" and before.record.state != "failed":
                reasons.append(f"preset {before.record.name!r} {after.record.reasons[0]}")
            followers.append((before, after))
        _refuse(source, reasons)
        return followers

    def _build(
        self,
        source: Source,
        followers: Sequence[tuple[Preset, Preset]],
        phases: Phases,
        stack: ExitStack,
    ) -> list[tuple[Preset, Preset]]:
        """Build what follows; refused if one cannot be, unless it had failed before.

        Only pinned variants are kept until all are published: the others must not need room for
        all of them at once, and may be cold then.
        """
        result, reasons = [], []
        for before, after in followers:
            if after.serving is not None and after.serving.plan.variant is not None:
                try:
                    with phases.timed("build"):
                        self._build_one(before, after.serving, stack)
                except UnprocessableError as error:
                    if before.record.state != "failed":
                        reasons.append(f"preset {before.record.name!r} {error.message}")
                    after = before
            result.append((before, after))
        _refuse(source, reasons)
        return result

    def _build_one(self, before: Preset, serving: Serving, stack: ExitStack) -> None:
        old = None if before.serving is None else before.serving.plan
        if serving.stored.record.document.pinned:
            stack.enter_context(self._variants.holding(serving.plan, old))
        else:
            self._variants.build(serving.plan, old)

    def _store_source(
        self, source: Source, followers: Sequence[tuple[Preset, Preset]], at: datetime
    ) -> None:
        assert source.content is not None, "what is stored was read"
        self._registry.contents.keep(source.content, source.path)
        with self._store.writing() as writer:
            writer.put_source(source.name, source.path, source.digest, at=at)
            for before, after in followers:
                if is_revised(before.head, after):
                    writer.add_revision(after.head, kept=self._revisions_kept)
                elif before.record.state != after.record.state:
                    writer.mark_revision(after.record)

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


def _is_current(source: Source, content: Content, path: Path) -> bool:
    if source.content is None or source.path != path or not is_unchanged(source.content):
        return False
    same_base = recorded_base(source.content) == recorded_base(content)
    return same_base and source.digest == content.digest


def _are_same(presets: Sequence[Preset], others: Sequence[Preset]) -> bool:
    """Whether these are the same objects."""
    return list(map(id, presets)) == list(map(id, others))


def _refuse(source: Source, reasons: Sequence[str]) -> None:
    if reasons:
        raise UnprocessableError(
            f"the new content of source {source.name!r} breaks presets that use it, nothing "
            f"changed: {'; '.join(reasons)}",
            param="path",
        )


def _revision_edit(source: Source, edit: Edit) -> Edit:
    """The edit of the presets that follow: at once, and saying why."""
    message = f"source {source.name} has new content"
    return replace(
        edit, wait=True, message=f"{message}: {edit.message}" if edit.message else message
    )
