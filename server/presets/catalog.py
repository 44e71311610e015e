"""The catalog: one namespace of base, presets and sources, and every way to read or edit it.

Reads work on an immutable snapshot and take no lock. Edits are serialised: validate, plan, commit,
publish. What is published was committed, and what was acknowledged is on disk.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from merging.adapter import BaseTensor
from merging.base import Base
from server.errors import ServiceError
from server.presets.builder import Builder
from server.presets.document import PresetDocument
from server.presets.editing import cleaned, patched
from server.presets.explain import explain, explain_failed
from server.presets.kept_revisions import KeptRevisions
from server.presets.loading import load
from server.presets.models import list_models, model_card
from server.presets.names import check_name
from server.presets.observer import CatalogObserver, NullObserver
from server.presets.planner import Planner
from server.presets.policy import Policy
from server.presets.preset_editor import PresetEditor, absent, existing, is_current
from server.presets.published import Published
from server.presets.record import Edit, EditResult, ModelCard, PresetRecord, SourceCard, now
from server.presets.resolver import Resolver
from server.presets.served import Overrides, Served
from server.presets.snapshot import Preset, Snapshot
from server.presets.source_editor import SourceEditor, existing_source
from server.presets.sources import SourceRegistry
from server.presets.store import PresetStore

__all__ = [
    "Catalog",
    "CatalogObserver",
    "Edit",
    "EditResult",
    "ModelCard",
    "PresetRecord",
    "SourceCard",
]

logger = logging.getLogger(__name__)


class Catalog:
    """Everything that can be called. Synchronous, and safe to use from several threads."""

    def __init__(
        self,
        store: PresetStore,
        base: Base,
        *,
        policy: Policy,
        source_dirs: Sequence[Path] = (),
        allow_base_mismatch: bool = False,
        observer: CatalogObserver | None = None,
        revisions_kept: int = 1000,
        base_tensor: BaseTensor | None = None,
    ) -> None:
        assert revisions_kept >= 1, "the newest revision is always kept"
        observer = observer or NullObserver()
        self._store, self._base, self._policy = store, base, policy
        self._revisions_kept = revisions_kept
        self._created = int(now().timestamp())
        self._planner = Planner(base)
        self._registry = SourceRegistry(
            base, source_dirs, allow_base_mismatch=allow_base_mismatch, base_tensor=base_tensor
        )
        self._published = Published(base, self._registry, observer)
        self._builder = Builder(store, self._published)
        self._kept = KeptRevisions(
            store, self._registry, self._planner, revisions_kept=revisions_kept
        )
        self._resolver = Resolver(self._planner, self._kept, policy)
        self._presets = PresetEditor(
            store,
            self._planner,
            self._published,
            observer,
            self._builder,
            revisions_kept=revisions_kept,
        )
        self._sources = SourceEditor(
            store, self._registry, self._planner, self._published, revisions_kept=revisions_kept
        )

    # Start and stop

    def load(self) -> None:
        """Read the store and the sources in it, and plan every preset on this base."""
        with self._published.lock:
            snapshot = load(
                self._store, self._registry, self._planner, revisions_kept=self._revisions_kept
            )
            self._published.publish(snapshot.presets.values(), sources=snapshot.sources)

    def close(self) -> None:
        """Finish the revisions that are building. The store is its owner's to close."""
        self._builder.close()

    def add_source(self, name: str, path: Path) -> SourceCard:
        """Register the operator's own source, from any folder, or give its name this content."""
        check_name(name, kind="source")
        path = Path(path).absolute()
        if name in self._snapshot.sources:
            self._sources.replace(name, path, Edit(message=f"source {name} was given at start-up"))
        else:
            self._sources.register(name, path)
        return self.source(name)

    def seed_presets(self, documents: Sequence[PresetDocument], origin: str) -> list[str]:
        """Create the presets that do not exist. Returns a line for the log on every other one."""
        lines = (self._seed(document, origin) for document in documents)
        return [line for line in lines if line is not None]

    def _seed(self, document: PresetDocument, origin: str) -> str | None:
        current = self._snapshot.presets.get(document.name)
        if current is None:
            try:
                self.create(document, edit=Edit(author=origin, message=f"created from {origin}"))
            except ServiceError as error:
                return f"preset {document.name!r} of {origin} was not created: {error.message}"
            return f"preset {document.name!r} was created from {origin}"
        if document.content() == current.record.document.content():
            return None
        return (
            f"preset {document.name!r} of {origin} was not applied: it differs from revision "
            f"{current.record.revision}, which is kept; delete the preset to take it from {origin}"
        )

    # Calling

    def models(self) -> list[ModelCard]:
        """Everything that can be called as `model`, the base first."""
        return list_models(self._snapshot, self._base, self._policy, created=self._created)

    def model(self, model_id: str) -> ModelCard:
        """The card of one model string."""
        snapshot = self._snapshot
        return model_card(model_id, snapshot, self.models(), self._kept)

    def resolve(self, model: str, overrides: Overrides | None = None) -> Served:
        """What a model string means now; the request that asks is pinned to it."""
        return self._resolver.resolve(self._snapshot, model, overrides or Overrides())

    # Presets

    def presets(self) -> list[PresetRecord]:
        """The newest revision of every preset, by name."""
        return [preset.record for _, preset in sorted(self._snapshot.presets.items())]

    def preset(self, name: str, revision: int | None = None) -> PresetRecord:
        """The newest revision of a preset, or a kept one."""
        preset = existing(self._snapshot, name)
        return preset.record if revision is None else self._kept.find(preset, revision).record

    def revisions(self, name: str) -> list[PresetRecord]:
        """The kept revisions of a preset, newest first."""
        return self._kept.all(existing(self._snapshot, name))

    def explain(self, name: str, revision: int | None = None) -> dict[str, JsonValue]:
        """What a revision resolves to, tensor by tensor."""
        preset = existing(self._snapshot, name)
        stored = preset.head if revision is None else self._kept.find(preset, revision)
        if stored.record.state == "failed":
            return explain_failed(stored.record)
        return explain(stored.record, self._plan(preset, stored.record.revision))

    def _plan(self, preset: Preset, revision: int) -> Plan:
        ...

    def validate(self, document: PresetDocument) -> tuple[PresetRecord, dict[str, JsonValue]]:
        """A dry run: the record that a document would become, and what explain says of it."""
        return self._presets.dry_run(document)

    def create(self, document: PresetDocument, *, edit: Edit) -> PresetRecord:
        """Create a preset; ConflictError if its name is taken."""

        def change(current: Preset | None) -> PresetDocument:
            absent(current, document.name)
            return document

        return self._presets.edit("create", document.name, cleaned(edit), change).record

    def replace(self, name: str, document: PresetDocument, *, edit: Edit) -> EditResult:
        """Create a preset, or replace its document."""
        check_same_name(name, document)
        return self._presets.edit("replace", name, cleaned(edit), lambda _: document)

    def patch(self, name: str, patch: object, *, edit: Edit) -> EditResult:
        """Apply an RFC 7396 merge patch to a preset's document."""

        def change(current: Preset | None) -> PresetDocument:
            return patched(existing(current, name).record, patch)

        return self._presets.edit("patch", name, cleaned(edit), change)

    def rollback(self, name: str, revision: int, *, edit: Edit) -> EditResult:
        """Make a new revision with the document of a kept one."""

        def change(current: Preset | None) -> PresetDocument:
            return self._kept.find(existing(current, name), revision).record.document

        return self._presets.edit("rollback", name, cleaned(edit), change)

    def delete(self, name: str, *, edit: Edit) -> None:
        """Delete a preset and its revisions."""
        self._presets.delete(name, edit)
