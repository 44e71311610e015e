"""The catalog: one namespace of base, presets and sources, and every way to read or edit it.

Reads work on an immutable snapshot and take no lock. Edits are serialised: validate, plan, commit,
publish. What is published was committed, and what was acknowledged is on disk.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from merging.adapter import BaseTensor
from merging.base import Base
from server.presets.builder import Builder
from server.presets.document import PresetDocument, check_same_name
from server.presets.editing import cleaned, patched
from server.presets.explain import explain, explain_failed
from server.presets.kept_revisions import KeptRevisions
from server.presets.loading import load
from server.presets.models import ModelList
from server.presets.names import check_name
from server.presets.observer import CatalogObserver, NullObserver
from server.presets.planner import Planner
from server.presets.policy import Policy
from server.presets.preset_editor import PresetEditor, absent, check_contents, existing
from server.presets.published import Published
from server.presets.record import Edit, EditResult, ModelCard, PresetRecord, SourceCard, now
from server.presets.resolver import Resolver
from server.presets.seeding import seed
from server.presets.served import Overrides, Served
from server.presets.snapshot import Preset, Snapshot
from server.presets.source_editor import SourceEditor, existing_source
from server.presets.sources import Contents, SourceRegistry
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
        self._store, self._revisions_kept = store, revisions_kept
        self._planner = Planner(base)
        self._registry = SourceRegistry(
            base,
            source_dirs,
            allow_base_mismatch=allow_base_mismatch,
            base_tensor=base_tensor,
            contents=Contents(store.contents_folder),
            forget=self._planner.forget,
        )
        self._published = Published(base, self._registry, observer)
        self._builder = Builder(self._published)
        self._kept = KeptRevisions(
            store, self._registry, self._planner, revisions_kept=revisions_kept
        )
        self._resolver = Resolver(self._planner, self._kept, policy)
        self._models = ModelList(base, self._kept, policy, created=int(now().timestamp()))
        self._presets = PresetEditor(
            store,
            self._planner,
            self._published,
            observer,
            self._builder,
            revisions_kept=revisions_kept,
        )
        self._sources = SourceEditor(
            store,
            self._registry,
            self._planner,
            self._published,
            observer,
            revisions_kept=revisions_kept,
        )

    @property
    def _snapshot(self) -> Snapshot:
        return self._published.snapshot

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
            self._sources.replace(name, path, Edit())
        else:
            self._sources.register(name, path)
        return self.source(name)

    def seed_presets(self, documents: Sequence[PresetDocument], origin: str) -> list[str]:
        """Create the presets that do not exist. Returns lines for the log."""
        lines = (
            seed(document, self._snapshot.presets.get(document.name), origin, self._create)
            for document in documents
        )
        return [line for line in lines if line is not None]

    # Calling

    def models(self) -> list[ModelCard]:
        """Everything that can be called as `model`, the base first."""
        return self._models.cards(self._snapshot)

    def model(self, model_id: str) -> ModelCard:
        """The card of one model string."""
        return self._models.card(self._snapshot, model_id)

    def resolve(self, model: str, overrides: Overrides | None = None) -> Served:
        """What a model string means now; the request that asks is pinned to it."""
        return self._resolver.resolve(self._snapshot, model, overrides or Overrides())

    # Presets

    def presets(self) -> list[PresetRecord]:
        """The newest revision of every preset, by name."""
        return [preset.record for _, preset in sorted(self._snapshot.presets.items())]

    def preset(self, name: str, revision: int | None = None) -> PresetRecord:
        """The newest revision of a preset, or a kept one."""
        preset = self._existing(name)
        return preset.record if revision is None else self._kept.find(preset, revision).record

    def revisions(self, name: str) -> list[PresetRecord]:
        """The kept revisions of a preset, newest first."""
        return self._kept.all(self._existing(name))

    def explain(self, name: str, revision: int | None = None) -> dict[str, JsonValue]:
        """What a revision resolves to, tensor by tensor, or why it cannot be built."""
        preset = self._existing(name)
        stored = preset.head if revision is None else self._kept.find(preset, revision)
        if stored.record.state == "failed":
            return explain_failed(stored.record)
        return explain(stored.record, self._kept.plan(stored), self._snapshot.sources)

    def validate(self, document: PresetDocument) -> tuple[PresetRecord, dict[str, JsonValue]]:
        """A dry run: the record that a document would become, and what explain would say."""
        record, plan = self._presets.dry_run(document)
        return record, explain(record, plan, self._snapshot.sources)

    def create(self, document: PresetDocument, *, edit: Edit) -> PresetRecord:
        """Create a preset; ConflictError if its name is taken."""
        return self._create(document, edit)

    def replace(self, name: str, document: PresetDocument, *, edit: Edit) -> EditResult:
        """Create a preset, or replace its document."""
        check_same_name(name, document.name)
        return self._presets.edit("replace", name, cleaned(edit), lambda _: document)

    def patch(self, name: str, patch: object, *, edit: Edit) -> EditResult:
        """Apply an RFC 7396 merge patch to a preset's document."""

        def change(current: Preset | None) -> PresetDocument:
            return patched(existing(current, name).record, patch)

        return self._presets.edit("patch", name, cleaned(edit), change)

    def rollback(self, name: str, revision: int, *, edit: Edit) -> EditResult:
        """Make a new revision with the document of a kept one."""

        def change(current: Preset | None) -> PresetDocument:
            preset = existing(current, name)
            kept = self._kept.find(preset, revision)
            check_contents(kept, preset)
            return kept.record.document

        return self._presets.edit("rollback", name, cleaned(edit), change)

    def delete(self, name: str, *, edit: Edit) -> None:
        """Delete a preset and its revisions."""
        self._presets.delete(name, edit)

    # Sources

    def sources(self) -> list[SourceCard]:
        """Every source, by name."""
        snapshot = self._snapshot
        return [snapshot.source_card(name) for name in sorted(snapshot.sources)]

    def source(self, name: str) -> SourceCard:
        """One source."""
        snapshot = self._snapshot
        return snapshot.source_card(existing_source(snapshot, name).name)

    def register_source(self, name: str, path: str) -> SourceCard:
        """Register a source that a client names, from inside a source folder."""
        check_name(name, kind="source")
        self._sources.register(name, self._registry.allowed_path(path))
        return self.source(name)

    def replace_source(
        self, name: str, path: str, *, edit: Edit
    ) -> tuple[SourceCard, list[PresetRecord]]:
        """Give a source new content; returns the new revisions of the presets that use it."""
        folder = self._registry.allowed_path(path)
        presets = self._sources.replace(name, folder, cleaned(edit))
        return self.source(name), [preset.record for preset in presets]

    def delete_source(self, name: str) -> None:
        """Forget a source; ConflictError if a preset uses it."""
        self._sources.delete(name)

    def _create(self, document: PresetDocument, edit: Edit) -> PresetRecord:
        def change(current: Preset | None) -> PresetDocument:
            absent(current, document.name)
            return document

        return self._presets.edit("create", document.name, cleaned(edit), change).record

    def _existing(self, name: str) -> Preset:
        return existing(self._snapshot.presets.get(name), name)
