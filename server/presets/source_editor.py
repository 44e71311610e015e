"""Edits of sources: every preset that uses one follows, in the same transaction or not at all."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from merging.checkpoint import Progress
from merging.errors import SourceError
from server.engine.conversation import Conversation
from server.errors import ConflictError, UnprocessableError
from server.presets.contents import Content, is_unchanged
from server.presets.database import StoreError
from server.presets.document_members import DocumentMembers
from server.presets.editing import Phases, cleaned
from server.presets.followers import Follower, Followers, are_all, refuse
from server.presets.observer import CatalogObserver
from server.presets.planner import Planner
from server.presets.published import Published
from server.presets.record import Edit, now
from server.presets.revising import is_revised
from server.presets.snapshot import Preset, Snapshot, existing_source
from server.presets.sources import Source, SourceRegistry, recorded_base
from server.presets.store import PresetStore
from server.presets.variants import Variants
from server.presets.workshop import BuildError

logger = logging.getLogger(__name__)


NUM_ATTEMPTS = 3
"""A replacement that edits keep overtaking makes them wait after so many attempts."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What was found in a source's folder."""

    content: Content
    conversation: Conversation | None
    warnings: tuple[str, ...]


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
        members: DocumentMembers,
        *,
        revisions_kept: int,
    ) -> None:
        self._store = store
        self._observer = observer
        self._registry = registry
        self._planner = planner
        self._published = published
        self._followers = Followers(planner, variants, published, members)
        self._revisions_kept = revisions_kept

    def register(self, name: str, path: Path, progress: Progress | None = None) -> None:
        """Add a source under a free name."""
        self._published.check_free(name, kind="source")  # before the content is read, for nothing
        read = self._read(name, path, progress)
        with self._published.lock:
            self._published.check_free(name, kind="source")
            content, at = read.content, now()
            plan = self._planner.plan_source(name, content)
            source = Source(name, path, content.digest, content, plan, at, at)
            source = replace(source, warnings=read.warnings, conversation=read.conversation)
            self._store_source(source, [], at)
            self._publish(source, [])

    def replace(
        self, name: str, path: Path, edit: Edit, progress: Progress | None = None
    ) -> list[Preset]:
        """Give a source's name another folder; returns the presets that got a new revision."""
        edit = cleaned(edit)
        existing_source(self._published.snapshot, name)
        read = self._read(name, path, progress)
        revised = None
        for _ in range(NUM_ATTEMPTS):
            revised = self._attempt(name, path, read, edit)
            if revised is not None:
                return revised
        with self._published.lock:
            revised = self._attempt(name, path, read, edit)
        assert revised is not None, "nobody else edits while this thread has the lock"
        return revised

    def _attempt(self, name: str, path: Path, read: _Read, edit: Edit) -> list[Preset] | None:
        """Replace a source; None if it, or a preset that uses it, was edited meanwhile."""
        snapshot = self._published.snapshot
        current = existing_source(snapshot, name)
        if _is_current(current, read, path):
            return []
        content = read.content
        source = replace(
            current,
            path=path,
            digest=content.digest,
            content=content,
            plan=self._planner.plan_source(name, content),
            updated_at=now(),
            reasons=(),
            warnings=read.warnings,
            conversation=read.conversation,
        )
        phases = Phases()
        with ExitStack() as stack:
            with phases.timed("plan"):
                followers = self._followers.plan(snapshot, source, edit)
            followers = self._followers.build(source, followers, phases, stack)
            stack.enter_context(self._published.lock)
            if self._has_moved(snapshot, source, followers):
                return None
            try:
                self._published.check_pinned([after for _, after in followers])
            except BuildError as error:
                refuse(source, error.reasons)
            with phases.timed("commit"):
                self._store_source(source, followers, source.updated_at)
            with phases.timed("publish"):
                self._publish(source, followers)
            self._prune()
        revised = [after for before, after in followers if is_revised(before.head, after)]
        for preset in revised:
            self._observer.preset_edited(preset.record.name, "source", "changed", phases.seconds)
        return revised

    def _has_moved(self, snapshot: Snapshot, source: Source, followers: Sequence[Follower]) -> bool:
        """Whether a source, or a preset that uses this one, is not what it was. With the lock."""
        present = self._published.snapshot
        existing_source(present, source.name)
        return present.sources is not snapshot.sources or not are_all(
            present.presets_using(source.name), followers
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

    def _read(self, name: str, path: Path, progress: Progress | None) -> _Read:
        try:
            content, warnings = self._registry.read(path, progress)
            self._registry.check_related(content)
        except SourceError as error:
            raise UnprocessableError(
                f"source {name!r} cannot be used: {error}", param="path", code="source_refused"
            ) from error
        conversation, told = self._registry.read_conversation(path)
        for warning in told:
            logger.warning("source %s: %s", name, warning)
        return _Read(content, conversation, (*warnings, *told))

    def _store_source(self, source: Source, followers: Sequence[Follower], at: datetime) -> None:
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

    def _publish(self, source: Source, followers: Sequence[Follower]) -> None:
        sources = {**self._published.snapshot.sources, source.name: source}
        self._published.publish([after for _, after in followers], sources=sources)


def _is_current(source: Source, read: _Read, path: Path) -> bool:
    content = read.content
    if source.content is None or source.path != path or not is_unchanged(source.content):
        return False
    same_base = recorded_base(source.content) == recorded_base(content)
    is_same = same_base and source.digest == content.digest
    return is_same and source.conversation == read.conversation
