"""Start-up: what the database remembers, on the base and the folders as they are now."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from merging.base import Base
from merging.errors import SourceError
from server.errors import ServiceError
from server.presets.builder import INTERNAL_ERROR
from server.presets.database import StoreError
from server.presets.document_members import DocumentMembers
from server.presets.kept_revisions import KeptRevisions
from server.presets.names import is_base
from server.presets.parents import parent_content, parents_first
from server.presets.planner import Planner
from server.presets.record import Edit, StoredRevision, now
from server.presets.revising import building, failed, is_revised, refreshed
from server.presets.snapshot import Preset, Serving, Snapshot
from server.presets.sources import Source, SourceRegistry
from server.presets.store import PresetStore, StoredSource

logger = logging.getLogger(__name__)


def load(
    store: PresetStore,
    registry: SourceRegistry,
    planner: Planner,
    kept: KeptRevisions,
    members: DocumentMembers,
    *,
    revisions_kept: int,
) -> Snapshot:
    """Read sources, plan every preset, and store what changed since the last time.

    Nothing is dropped: what cannot be used is kept as failed, with the reason. Nothing is built:
    variants are cold, and a revision that was still building does not serve yet.
    """
    at, stored_sources, heads = now(), store.sources(), store.heads()
    sources = _read_all(stored_sources, registry, planner, at)
    sources = {name: _talking(s, registry) for name, s in sources.items()}
    older = partial(_older, store=store, kept=kept)
    presets = [
        _reserved(_planned(head, sources, planner, older, at), planner.base) for head in heads
    ]
    presets = [members.joined(preset, _snapshot(presets, sources)) for preset in presets]
    with store.writing() as writer:
        for name, source in _changed(stored_sources, sources).items():
            writer.put_source(name, source.path, source.digest, source.parent, at=at)
        for head, preset in zip(heads, presets, strict=True):
            if is_revised(head, preset):
                writer.add_revision(preset.head, kept=revisions_kept)
            elif (head.record.state, preset.record.state) == ("building", "ready"):
                writer.mark_revision(preset.record)
    registry.contents.prune(store.used_contents())
    for head, preset in zip(heads, presets, strict=True):
        _log_preset(head, preset)
    return _snapshot(presets, sources)


def _snapshot(presets: Sequence[Preset], sources: Mapping[str, Source]) -> Snapshot:
    return Snapshot({preset.record.name: preset for preset in presets}, sources)


def _read_all(
    stored: Sequence[StoredSource], registry: SourceRegistry, planner: Planner, at: datetime
) -> dict[str, Source]:
    """The sources as they are now, parents first."""
    by_name = {source.name: source for source in stored}
    sources: dict[str, Source] = {}
    for name in parents_first(by_name):
        sources[name] = _read(by_name[name], sources, registry, planner, at)
    return {source.name: sources[source.name] for source in stored}


def _read(
    stored: StoredSource,
    sources: Mapping[str, Source],
    registry: SourceRegistry,
    planner: Planner,
    at: datetime,
) -> Source:
    """The source as it is now. Whatever is wrong with its folder, the server starts."""
    source = Source(
        stored.name,
        stored.path,
        stored.digest,
        None,
        None,
        stored.created_at,
        stored.updated_at,
        parent=stored.parent,
    )
    try:
        parent = parent_content(sources, stored.name, stored.parent)
        content, warnings = registry.read(stored.path, None, parent)
        plan = planner.plan_source(stored.name, content)
    except SourceError as error:
        logger.error("source %s cannot be used: %s", stored.name, error)
        return replace(source, reasons=error.reasons)
    except ServiceError as error:  # of its parent
        logger.error("source %s cannot be used: %s", stored.name, error.message)
        return replace(source, reasons=(error.message,))
    except Exception:
        logger.exception("source %s cannot be used", stored.name)
        return replace(source, reasons=(f"{stored.path} cannot be read: {INTERNAL_ERROR}",))
    try:
        registry.keep(content, stored.path, parent)
    except StoreError as error:  # old revisions may miss it one day; today all is well
        logger.warning("%s", error)
    if content.digest != stored.digest:
        logger.warning("the content of source %s changed in %s", stored.name, stored.path)
        source = replace(source, digest=content.digest, updated_at=at)
    return replace(source, content=content, plan=plan, warnings=warnings)


def _talking(source: Source, registry: SourceRegistry) -> Source:
    """The source with how it is talked to, if it can be used."""
    if source.content is None:
        return source
    conversation, told = registry.read_conversation(source.path)
    return replace(source, conversation=conversation, warnings=(*source.warnings, *told))


def _planned(
    head: StoredRevision,
    sources: Mapping[str, Source],
    planner: Planner,
    older: Callable[[StoredRevision], Serving | None],
    at: datetime,
) -> Preset:
    """The preset with this head on what there is now. What was not built, and has to be, does not
    take the place of an older revision that was.
    """
    was_building = head.record.state == "building"
    if head.record.state == "failed" and not _changed_sources(head, sources):
        return failed(head, head.record.reasons, older(head))
    edit = Edit(message=_message(head, sources), wait=not was_building)
    preset = refreshed(head, sources, planner, edit, at)
    if was_building and preset.serving is None:
        return failed(preset.head, preset.record.reasons, older(head))
    if was_building and preset.record.path == "variant":
        return building(preset.head, older(head))
    return preset


def _changed(stored: Sequence[StoredSource], sources: Mapping[str, Source]) -> dict[str, Source]:
    return {
        source.name: sources[source.name]
        for source in stored
        if sources[source.name].digest != source.digest
    }


def _message(head: StoredRevision, sources: Mapping[str, Source]) -> str:
    """Why a preset gets a new revision, if it does."""
    changed = ", ".join(_changed_sources(head, sources))
    return f"source {changed} changed while the server was stopped"


def _changed_sources(head: StoredRevision, sources: Mapping[str, Source]) -> list[str]:
    """The sources of a revision that have other content now."""
    return [
        name
        for name, digest in sorted(head.sources.items())
        if name in sources and sources[name].digest != digest
    ]


def _older(head: StoredRevision, store: PresetStore, kept: KeptRevisions) -> Serving | None:
    """What serves in place of a revision that is not built: the newest one that was."""
    for stored in store.revisions(head.record.name):
        if stored.record.revision < head.record.revision and stored.record.state == "ready":
            try:
                return Serving(stored, kept.plan(stored))
            except ServiceError as error:
                logger.warning("%s cannot serve: %s", stored.record.label, error.message)
    return None


def _reserved(preset: Preset, base: Base) -> Preset:
    """A preset whose name became the id of the base cannot be called."""
    if not is_base(preset.record.name, base):
        return preset
    return failed(preset.head, [f"its name {preset.record.name!r} is the resident base's now"])


def _log_preset(head: StoredRevision, preset: Preset) -> None:
    record = preset.record
    if record.state == "failed":
        logger.error("preset %s cannot be built: %s", record.name, "; ".join(record.reasons))
    elif is_revised(head, preset):
        logger.warning(
            "preset %s is at revision %d: %s", record.name, record.revision, record.message
        )
