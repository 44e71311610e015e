"""The catalog: one namespace of base, presets and sources, and every way to read or edit it.

Reads work on an immutable snapshot and take no lock. Edits are serialised: validate, plan, commit,
publish. What is published was committed, and what was acknowledged is on disk.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from merging.adapter import BaseTensor
from merging.base import Base
from merging.checkpoint import Progress
from merging.checkpoint_weights import CheckpointWeights
from server.adapters.dense_cache import DenseCache
from server.errors import UnavailableError
from server.presets.builder import Builder
from server.presets.caller import Caller
from server.presets.changes import Change, creation, merge_patching, replacement, return_to
from server.presets.contents import Contents
from server.presets.document import PresetDocument
from server.presets.document_members import DocumentMembers
from server.presets.interference import Interference
from server.presets.kept_revisions import KeptRevisions
from server.presets.loading import load
from server.presets.mergekit_form import MergekitForm
from server.presets.models import ModelList
from server.presets.names import check_name
from server.presets.observer import CatalogObserver, NullObserver
from server.presets.origins import Origins
from server.presets.planner import Planner
from server.presets.policy import Policy
from server.presets.preset_editor import PresetEditor
from server.presets.published import Published
from server.presets.reader import Reader
from server.presets.record import Edit, EditResult, ModelCard, PresetRecord, SourceCard
from server.presets.resolver import Resolver
from server.presets.seeding import seed
from server.presets.served import ChatDefaults, Overrides, Served
from server.presets.snapshot import Preset, Serving, Snapshot
from server.presets.source_editor import SourceEditor
from server.presets.sources import ReadConversation, SourceRegistry
from server.presets.store import PresetStore
from server.presets.tryouts import Tryouts
from server.presets.variants import Variants
from server.presets.weighing import Weighing

__all__ = ["Catalog", "Edit"]


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
        resident: CheckpointWeights | None = None,
        dense_cache: int = 0,
        variants: Variants | None = None,
        read_conversation: ReadConversation = lambda folder: (None, ()),
        location: str = "",
        patience: float = 30.0,
    ) -> None:
        """`resident` are the base's own files, and `variants` builds from them; without these only
        blends can be served. `dense_cache`: bytes on disk for what PEFT merges. `location`: the
        base's folder or hub id. `patience`: seconds that a request waits for a build.
        `read_conversation`: see `SourceRegistry`.
        """
        assert revisions_kept >= 1, "the newest revision is always kept"
        observer = observer or NullObserver()
        self.base = base
        self._store, self._revisions_kept = store, revisions_kept
        self._variants = variants or Variants()
        self._planner = Planner(base, resident)
        self._registry = SourceRegistry(
            base,
            source_dirs,
            resident=resident,
            allow_base_mismatch=allow_base_mismatch,
            base_tensor=base_tensor,
            contents=Contents(store.contents_folder),
            dense=DenseCache(store.dense_folder, dense_cache),
            forget=self._planner.forget,
            read_conversation=read_conversation,
        )
        self._origins = Origins(base, location, self._registry.folders)
        self._published = Published(base, self._registry, self._variants, observer)
        self._builder = Builder(self._published, self._variants, store)
        self._kept = KeptRevisions(
            store, self._registry, self._planner, revisions_kept=revisions_kept
        )
        self._reader = Reader(self._published, self._kept, self._variants, Interference(resident))
        resolver = Resolver(self._planner, self._kept, policy)
        self._caller = Caller(resolver, self._variants, self._registry.doubts, patience)
        self.tryouts = Tryouts(self._published, self._caller)
        self._models = ModelList(base, self._kept, policy, self._origins)
        shared = (self._planner, self._published, self._variants, observer)
        self._members = DocumentMembers(resolver.members)
        self._presets = PresetEditor(
            store, *shared, self._members, self._builder, revisions_kept=revisions_kept
        )
        self._sources = SourceEditor(
            store, self._registry, *shared, self._members, revisions_kept=revisions_kept
        )
        self.mergekit = MergekitForm(self._origins, self._published)

    @property
    def _snapshot(self) -> Snapshot:
        return self._published.snapshot

    # Start and stop

    def load(self) -> None:
        """Read the store and the sources in it, plan every preset on this base, and go on with
        builds that the last stop cut off.
        """
        with self._published.lock:
            parts = (self._store, self._registry, self._planner, self._kept, self._members)
            snapshot = load(*parts, revisions_kept=self._revisions_kept)
            self._published.publish(snapshot.presets.values(), sources=snapshot.sources)
        for preset in snapshot.presets.values():
            if preset.record.state == "building":
                finished = Preset(preset.head, Serving(preset.head, self._kept.plan(preset.head)))
                serving = self._members.joined(finished, snapshot).serving
                assert serving is not None, "a merge does without members that are gone"
                self._builder.submit(serving)

    def close(self) -> None:
        """Publish the blends that are waiting, give up what is being built: the next start builds
        it. The store is its owner's to close.
        """
        self._variants.close()
        self._builder.close()

    def build_pinned(self) -> None:
        """Build the pinned presets; what cannot be built is said in the log, and stays cold."""
        self._builder.build_pinned()

    def add_source(
        self,
        name: str,
        path: Path,
        location: str = "",
        progress: Progress | None = None,
        parent: str | None = None,
    ) -> SourceCard:
        """Register the operator's own source, known elsewhere by `location`, such as a hub id, from
        any folder; or give its name this content. `parent`: the source that it is an adapter on.
        """
        check_name(name, kind="source")
        if location:
            self._origins.note(name, location)
        path = Path(path).absolute()
        if name in self._snapshot.sources:
            self._sources.replace(name, path, Edit(), progress, parent)
        else:
            self._sources.register(name, path, progress, parent)
        return self.source(name)

    def seed_presets(self, documents: Sequence[PresetDocument], origin: str) -> list[str]:
        """Create the presets that do not exist. Returns lines for the log."""
        lines = (
            seed(document, self._snapshot.presets.get(document.name), origin, self._create)
            for document in documents
        )
        return [line for line in lines if line is not None]

    # Calling

    def models(self, *, public: bool = False) -> list[ModelCard]:
        """Everything that can be called as `model`, the base first; `public` without folders."""
        return self._models.cards(self._snapshot, public=public)

    def model(self, model_id: str, *, public: bool = False) -> ModelCard:
        """The card of one model string."""
        return self._models.card(self._snapshot, model_id, public=public)

    def chat_defaults(self, model: str) -> ChatDefaults:
        """How conversations with what a model string means now are written."""
        return self._caller.chat_defaults(self._snapshot, model)

    def resolve(self, model: str, overrides: Overrides | None = None) -> Served:
        """What a model string means now; the request that asks is pinned to it.

        Weights that have to be built are waited for; UnavailableError if that takes too long.
        """
        return self._caller.resolve(self._snapshot, model, overrides or Overrides())

    def begin(self, model: str, overrides: Overrides | None = None) -> Future[Served]:
        """The same without waiting: done already, unless weights have to be built.

        Of a model without overrides and without a revision this reads nothing from the database.
        """
        return self._caller.begin(self._snapshot, model, overrides or Overrides())

    def other_mode(self, served: Served) -> Served | None:
        """A preset in its other mode; None unless the revision serves and all weights are there."""
        return self._caller.other_mode(self._snapshot, served)

    def begin_weighing(self, model: str, overrides: Overrides) -> Future[Weighing]:
        """The sources among which a request's prompt is to choose, in the same way."""
        return self._caller.begin_weighing(self._snapshot, model, overrides)

    @property
    def patience(self) -> float:
        """Seconds that a request waits for weights that are being built."""
        return self._caller.patience

    def out_of_patience(self, model: str, timeout: float | None) -> UnavailableError:
        """The error for a request that waited for so long, or until its `timeout`."""
        return self._caller.out_of_patience(model, timeout)

    # Presets

    def presets(self) -> list[PresetRecord]:
        """The newest revision of every preset, by name."""
        return self._reader.presets()

    def preset(self, name: str, revision: int | None = None) -> PresetRecord:
        """The newest revision of a preset, or a kept one."""
        return self._reader.preset(name, revision)

    def revisions(self, name: str) -> list[PresetRecord]:
        """The kept revisions of a preset, newest first."""
        return self._reader.revisions(name)

    def explain(
        self, name: str, revision: int | None = None, *, interference: bool | None = False
    ) -> dict[str, JsonValue]:
        """What a revision resolves to, tensor by tensor, or why it cannot be built.

        With `interference` also how its sources agree, which takes a pass over all tensors; None
        does without where that cannot be told.
        """
        return self._reader.explain(name, revision, interference=interference)

    def validate(
        self, document: PresetDocument, *, edit: Edit
    ) -> tuple[PresetRecord, dict[str, JsonValue]]:
        """A dry run: the record that a document would become, and what explain would say."""
        return self._reader.validated(*self._presets.dry_run(document, edit))

    def create(self, document: PresetDocument, *, edit: Edit) -> PresetRecord:
        """Create a preset; ConflictError if its name is taken."""
        return self._create(document, edit)

    def replace(self, name: str, document: PresetDocument, *, edit: Edit) -> EditResult:
        """Create a preset, or replace its document."""
        return self._edit("replace", name, edit, replacement(name, document))

    def patch(self, name: str, patch: object, *, edit: Edit) -> EditResult:
        """Apply an RFC 7396 merge patch to a preset's document."""
        return self._edit("patch", name, edit, merge_patching(name, patch, self._snapshot.presets))

    def rollback(self, name: str, revision: int, *, edit: Edit) -> EditResult:
        """Make a new revision with the document of a kept one."""
        presets = self._snapshot.presets
        change = return_to(name, lambda preset: self._kept.find(preset, revision), presets)
        return self._edit("rollback", name, edit, change)

    def delete(self, name: str, *, edit: Edit) -> None:
        """Delete a preset and its revisions."""
        self._presets.delete(name, edit)

    # Sources

    def sources(self) -> list[SourceCard]:
        """Every source, by name."""
        return self._reader.sources()

    def source(self, name: str) -> SourceCard:
        """One source."""
        return self._reader.source(name)

    def register_source(self, name: str, path: str, parent: str | None = None) -> SourceCard:
        """Register a source that a client names, from inside a source folder."""
        check_name(name, kind="source")
        self._sources.register(name, self._registry.folders.allowed_path(path), parent=parent)
        return self.source(name)

    def replace_source(
        self, name: str, path: str, parent: str | None = None, *, edit: Edit
    ) -> tuple[SourceCard, list[PresetRecord]]:
        """Give a source new content; returns the new revisions of the presets that use it."""
        folder = self._registry.folders.allowed_path(path)
        presets = self._sources.replace(name, folder, edit, parent=parent)
        return self.source(name), [preset.record for preset in presets]

    def delete_source(self, name: str) -> None:
        """Forget a source; ConflictError if a preset uses it, or it has children."""
        self._sources.delete(name)

    def _create(self, document: PresetDocument, edit: Edit) -> PresetRecord:
        return self._edit("create", document.name, edit, creation(document)).record

    def _edit(self, operation: str, name: str, edit: Edit, change: Change) -> EditResult:
        result = self._presets.edit(operation, name, edit, change)
        return replace(result, record=self._reader.told(result.record))
