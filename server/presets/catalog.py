"""The catalog: one namespace of base, presets and sources, and every way to read or edit it.

Reads work on an immutable snapshot and take no lock. Edits are serialised: validate, plan, commit,
publish. What is published was committed, and what was acknowledged is on disk.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from merging.adapter import BaseTensor
from merging.base import Base
from merging.checkpoint import Progress
from merging.checkpoint_weights import CheckpointWeights
from merging.errors import MergingError
from merging.mergekit import from_mergekit, to_mergekit
from merging.plan import Plan
from server.errors import (
    InvalidRequestError,
    ServiceError,
    UnavailableError,
    UnprocessableError,
)
from server.presets.builder import Builder
from server.presets.caller import Caller
from server.presets.contents import Contents
from server.presets.document import PresetDocument, check_same_name
from server.presets.editing import cleaned, patched
from server.presets.explain import explain, explain_failed
from server.presets.interference import Interference
from server.presets.kept_revisions import KeptRevisions
from server.presets.loading import load
from server.presets.models import ModelList
from server.presets.names import check_name
from server.presets.observer import CatalogObserver, NullObserver
from server.presets.origins import Origins
from server.presets.planner import Planner, parse_recipe
from server.presets.policy import Policy
from server.presets.preset_editor import PresetEditor, absent, check_contents, existing
from server.presets.published import Published
from server.presets.record import Edit, EditResult, ModelCard, PresetRecord, SourceCard, now
from server.presets.resolver import Resolver
from server.presets.seeding import seed
from server.presets.served import Overrides, Served
from server.presets.snapshot import Preset, Snapshot
from server.presets.source_editor import SourceEditor, existing_source
from server.presets.sources import SourceRegistry
from server.presets.store import PresetStore
from server.presets.variants import Variants

logger = logging.getLogger(__name__)

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
        resident: CheckpointWeights | None = None,
        variants: Variants | None = None,
        location: str = "",
        patience: float = 30.0,
    ) -> None:
        """`resident` are the base's own files, and `variants` builds from them; without these only
        blends of adapters can be served. `location`: the base's folder or hub id. `patience`:
        seconds that a request waits for a build.
        """
        assert revisions_kept >= 1, "the newest revision is always kept"
        observer = observer or NullObserver()
        self._store, self._revisions_kept = store, revisions_kept
        self._variants = variants or Variants()
        self._planner = Planner(base, resident)
        self._interference = Interference(resident)
        self._registry = SourceRegistry(
            base,
            source_dirs,
            resident=resident,
            allow_base_mismatch=allow_base_mismatch,
            base_tensor=base_tensor,
            contents=Contents(store.contents_folder),
            forget=self._planner.forget,
        )
        self._origins = Origins(base, location, self._registry.folders)
        self._published = Published(base, self._registry, self._variants, observer)
        self._builder = Builder(self._published, self._variants, store)
        self._kept = KeptRevisions(
            store, self._registry, self._planner, revisions_kept=revisions_kept
        )
        self._caller = Caller(Resolver(self._planner, self._kept, policy), self._variants, patience)
        self._models = ModelList(base, self._kept, policy, created=int(now().timestamp()))
        self._presets = PresetEditor(
            store,
            self._planner,
            self._published,
            self._variants,
            observer,
            self._builder,
            revisions_kept=revisions_kept,
        )
        self._sources = SourceEditor(
            store,
            self._registry,
            self._planner,
            self._published,
            self._variants,
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
                self._store,
                self._registry,
                self._planner,
                self._kept,
                revisions_kept=self._revisions_kept,
            )
            self._published.publish(snapshot.presets.values(), sources=snapshot.sources)

    def close(self) -> None:
        """Publish the blends that are waiting, give up what is being built: the next start builds
        it. The store is its owner's to close.
        """
        self._variants.close()
        self._builder.close()

    def build_pinned(self) -> None:
        """Build the pinned presets; what cannot be built is said in the log, and stays cold."""
        for preset in self._snapshot.presets.values():
            serving = preset.serving
            if serving is not None and serving.stored.record.document.pinned:
                try:
                    self._variants.build(serving.plan)
                except ServiceError as error:
                    logger.error("%s is pinned and %s", serving.stored.record.label, error.message)
                except Exception:
                    logger.exception("%s is pinned and was not built", serving.stored.record.label)

    def add_source(
        self, name: str, path: Path, location: str = "", progress: Progress | None = None
    ) -> SourceCard:
        """Register the operator's own source, from any folder, or give its name this content.

        `location` is what it is known by elsewhere, such as a hub id.
        """
        check_name(name, kind="source")
        if location:
            self._origins.note(name, location)
        path = Path(path).absolute()
        if name in self._snapshot.sources:
            self._sources.replace(name, path, Edit(), progress)
        else:
            self._sources.register(name, path, progress)
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
        """What a model string means now; the request that asks is pinned to it.

        Weights that have to be built are waited for; UnavailableError if that takes too long.
        """
        return self._caller.resolve(self._snapshot, model, overrides or Overrides())

    def begin(self, model: str, overrides: Overrides | None = None) -> Future[Served]:
        """The same without waiting: done already, unless weights have to be built."""
        return self._caller.begin(self._snapshot, model, overrides or Overrides())

    @property
    def patience(self) -> float:
        """Seconds that a request waits for weights that are being built."""
        return self._caller.patience

    def out_of_patience(self, model: str) -> UnavailableError:
        """The error for a request that waited for so long."""
        return self._caller.out_of_patience(model)

    # Presets

    def presets(self) -> list[PresetRecord]:
        """The newest revision of every preset, by name."""
        return [self._shown(preset.record) for _, preset in sorted(self._snapshot.presets.items())]

    def preset(self, name: str, revision: int | None = None) -> PresetRecord:
        """The newest revision of a preset, or a kept one."""
        preset = self._existing(name)
        head = preset.head if revision is None else self._kept.find(preset, revision)
        return self._shown(head.record)

    def revisions(self, name: str) -> list[PresetRecord]:
        """The kept revisions of a preset, newest first."""
        return [self._shown(record) for record in self._kept.all(self._existing(name))]

    def explain(
        self, name: str, revision: int | None = None, *, interference: bool = False
    ) -> dict[str, JsonValue]:
        """What a revision resolves to, tensor by tensor, or why it cannot be built.

        With `interference` also how its sources agree, which takes a pass over all tensors.
        """
        preset = self._existing(name)
        stored = preset.head if revision is None else self._kept.find(preset, revision)
        if stored.record.state == "failed":
            return explain_failed(stored.record)
        plan = self._kept.plan(stored)
        explained = self._explained(stored.record, plan)
        if interference:
            explained["interference"] = self._interference.report(plan)
        return explained

    def validate(self, document: PresetDocument) -> tuple[PresetRecord, dict[str, JsonValue]]:
        """A dry run: the record that a document would become, and what explain would say."""
        record, plan = self._presets.dry_run(document)
        return record, self._explained(record, plan)

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

    # Mergekit

    def from_mergekit(self, config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """A mergekit configuration as fields of a document; InvalidRequestError with every reason.

        A model in it is a source's name, or a path or hub id that a source was registered from.
        """
        sources = self._snapshot.sources
        try:
            return from_mergekit(dict(config), lambda model: self._origins.name_of(model, sources))
        except MergingError as error:
            raise InvalidRequestError(f"mergekit: {error}", param="mergekit") from error

    def to_mergekit(self, record: PresetRecord) -> dict[str, JsonValue]:
        """A preset's recipe as mergekit's; UnprocessableError for what mergekit has no form for."""
        sources = self._snapshot.sources
        recipe = parse_recipe(record.document)
        try:
            return to_mergekit(recipe, lambda name: self._origins.location_of(name, sources))
        except MergingError as error:
            raise UnprocessableError(
                f"{record.label} has no form in mergekit: {error}", code="no_mergekit_form"
            ) from error

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
        self._sources.register(name, self._registry.folders.allowed_path(path))
        return self.source(name)

    def replace_source(
        self, name: str, path: str, *, edit: Edit
    ) -> tuple[SourceCard, list[PresetRecord]]:
        """Give a source new content; returns the new revisions of the presets that use it."""
        folder = self._registry.folders.allowed_path(path)
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

    def _explained(self, record: PresetRecord, plan: Plan) -> dict[str, JsonValue]:
        built = self._variants.built(plan.digest)
        return explain(self._shown(record), plan, self._snapshot.sources, built)

    def _shown(self, record: PresetRecord) -> PresetRecord:
        """The record with where its variant stands: it may be cold."""
        if record.path != "variant" or record.state != "ready":
            return record
        state, reasons = self._variants.state(record.digest)
        return replace(record, state=state, reasons=reasons)

    def _existing(self, name: str) -> Preset:
        return existing(self._snapshot.presets.get(name), name)
