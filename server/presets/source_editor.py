"""Edits of sources: every preset that uses one follows, in the same transaction or not at all."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from merging.checkpoint import Progress
from merging.errors import SourceError
from server.adapters.reader import Content
from server.engine.conversation import Conversation
from server.errors import ConflictError, UnprocessableError
from server.presets.contents import is_unchanged
from server.presets.database import StoreError
from server.presets.document_members import DocumentMembers
from server.presets.editing import Phases, cleaned
from server.presets.followers import Follower, Followers, are_all, refuse
from server.presets.observer import CatalogObserver
from server.presets.parents import children, descendants, parent_content
from server.presets.planner import Planner
from server.presets.published import Published
from server.presets.record import Edit, now
from server.presets.revising import is_revised
from server.presets.snapshot import Preset, Snapshot, existing_source
from server.presets.source_delta import recorded_base
from server.presets.sources import Source, SourceRegistry
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

    def register(
        self, name: str, path: Path, progress: Progress | None = None, parent: str | None = None
    ) -> None:
        """Add a source under a free name, as an adapter on its `parent` if it has one."""
        self._published.check_free(name, kind="source")  # before the content is read, for nothing
        for _ in range(NUM_ATTEMPTS):
            on = parent_content(self._published.snapshot.sources, name, parent)
            read = self._read(name, path, progress, on)
            with self._published.lock:
                self._published.check_free(name, kind="source")
                if parent_content(self._published.snapshot.sources, name, parent) is not on:
                    continue  # it got other content meanwhile
                content, at = read.content, now()
                plan = self._planner.plan_source(name, content)
                source = Source(name, path, content.digest, content, plan, at, at)
                source = replace(
                    source,
                    warnings=read.warnings,
                    conversation=read.conversation,
                    parent=parent,
                )
                self._store_sources([source], [], at)
                self._publish([source], [])
                return
        raise ConflictError(
            f"the parent {parent!r} of source {name!r} is being replaced: try again", param="parent"
        )

    def replace(
        self,
        name: str,
        path: Path,
        edit: Edit,
        progress: Progress | None = None,
        parent: str | None = None,
    ) -> list[Preset]:
        """Give a source's name another folder, and this parent; returns the presets that got a new
        revision. Adapters on the source follow.
        """
        edit = cleaned(edit)
        existing_source(self._published.snapshot, name)
        revised = None
        for _ in range(NUM_ATTEMPTS):
            revised = self._attempt(name, path, parent, edit, progress)
            if revised is not None:
                return revised
        with self._published.lock:
            revised = self._attempt(name, path, parent, edit, progress)
        assert revised is not None, "nobody else edits while this thread has the lock"
        return revised

    def _attempt(
        self, name: str, path: Path, parent: str | None, edit: Edit, progress: Progress | None
    ) -> list[Preset] | None:
        """Replace a source; None if it, or a preset that uses it, was edited meanwhile."""
        snapshot = self._published.snapshot
        current = existing_source(snapshot, name)
        on = parent_content(snapshot.sources, name, parent)
        read = self._read(name, path, progress, on)
        if _is_current(current, read, path) and current.parent == parent:
            return []
        source = replace(
            self._with(current, read.content, read.warnings),
            path=path,
            parent=parent,
            conversation=read.conversation,
        )
        changed = self._with_descendants(snapshot, source)
        phases = Phases()
        with ExitStack() as stack:
            with phases.timed("plan"):
                followers = self._followers.plan(snapshot, changed, edit)
            followers = self._followers.build(source, followers, phases, stack)
            stack.enter_context(self._published.lock)
            if self._has_moved(snapshot, changed, followers):
                return None
            try:
                self._published.check_pinned([after for _, after in followers])
            except BuildError as error:
                refuse(source, error.reasons)
            with phases.timed("commit"):
                self._store_sources(changed, followers, source.updated_at)
            with phases.timed("publish"):
                self._publish(changed, followers)
            self._prune()
        revised = [after for before, after in followers if is_revised(before.head, after)]
        for preset in revised:
            self._observer.preset_edited(preset.record.name, "source", "changed", phases.seconds)
        return revised

    def _with(self, current: Source, content: Content, warnings: tuple[str, ...]) -> Source:
        """The source with another content."""
        return replace(
            current,
            digest=content.digest,
            content=content,
            plan=self._planner.plan_source(current.name, content),
            updated_at=now(),
            reasons=(),
            warnings=warnings,
        )

    def _with_descendants(self, snapshot: Snapshot, source: Source) -> list[Source]:
        """A source that has other content, and the adapters on it, read again on what it is now."""
        sources = {**snapshot.sources, source.name: source}
        changed = [source]
        for name in descendants(snapshot.sources, source.name):
            current = sources[name]
            on = parent_content(sources, name, current.parent)
            try:
                content, warnings = self._registry.read(current.path, None, on)
            except SourceError as error:
                raise UnprocessableError(
                    f"the new content of source {source.name!r} breaks {name!r}, which is an "
                    f"adapter on it, nothing changed: {error}",
                    param="path",
                ) from error
            sources[name] = self._with(current, content, warnings)
            changed.append(sources[name])
        return changed

    def _has_moved(
        self, snapshot: Snapshot, changed: Sequence[Source], followers: Sequence[Follower]
    ) -> bool:
        """Whether a source, or a preset that uses these, is not what it was. With the lock."""
        present = self._published.snapshot
        existing_source(present, changed[0].name)
        names = [source.name for source in changed]
        return present.sources is not snapshot.sources or not are_all(
            present.presets_using(*names), followers
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
            if on := children(self._published.snapshot.sources, name):
                raise ConflictError(
                    f"source {name!r} is the parent of {', '.join(on)}: delete them first",
                    param="name",
                )
            with self._store.writing() as writer:
                writer.delete_source(name)
            sources = dict(self._published.snapshot.sources)
            del sources[name]
            self._published.publish(sources=sources)
            self._prune()

    def _read(
        self, name: str, path: Path, progress: Progress | None, parent: Content | None
    ) -> _Read:
        try:
            content, warnings = self._registry.read(path, progress, parent)
            self._registry.check_related(content)
        except SourceError as error:
            raise UnprocessableError(
                f"source {name!r} cannot be used: {error}", param="path", code="source_refused"
            ) from error
        conversation, told = self._registry.read_conversation(path)
        for warning in told:
            logger.warning("source %s: %s", name, warning)
        return _Read(content, conversation, (*warnings, *told))

    def _store_sources(
        self, changed: Sequence[Source], followers: Sequence[Follower], at: datetime
    ) -> None:
        sources = {**self._published.snapshot.sources, **{own.name: own for own in changed}}
        for source in changed:
            assert source.content is not None, "what is stored was read"
            on = parent_content(sources, source.name, source.parent)
            self._registry.keep(source.content, source.path, on)
        with self._store.writing() as writer:
            for source in changed:
                writer.put_source(source.name, source.path, source.digest, source.parent, at=at)
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

    def _publish(self, changed: Sequence[Source], followers: Sequence[Follower]) -> None:
        sources = {**self._published.snapshot.sources, **{own.name: own for own in changed}}
        self._published.publish([after for _, after in followers], sources=sources)


def _is_current(source: Source, read: _Read, path: Path) -> bool:
    content = read.content
    if source.content is None or source.path != path or not is_unchanged(source.content):
        return False
    same_base = recorded_base(source.content) == recorded_base(content)
    is_same = same_base and source.digest == content.digest
    return is_same and source.conversation == read.conversation
