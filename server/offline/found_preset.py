"""A preset to export: its document, and where what it is made of lies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from merging.base import Base
from merging.checkpoint_weights import open_checkpoint
from merging.errors import PlanError
from server.app import read_presets
from server.demo import demo_presets, demo_sources, ensure_demo_model
from server.engine.loading import describe_base
from server.engine.model_files import Progress, model_folder, model_id
from server.presets.contents import Contents
from server.presets.database_choice import DTYPES
from server.presets.document import PresetDocument
from server.presets.store import PresetStore
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class FoundPreset:
    """A preset and its parts.

    `folders`: where sources lie, by name. `digests`: what the content of a source must be, where
    that is known; `contents` has copies of adapters. `digest`: that of the revision, in the dtype
    of its server; None for a document that no server has seen. `parents`: the sources that others
    are adapters on.
    """

    document: PresetDocument
    label: str
    folders: Mapping[str, Path]
    digests: Mapping[str, str] = field(default_factory=dict)
    contents: Contents | None = None
    digest: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)

    def check_digest(self, digests: Mapping[str, str], base: Base) -> None:
        """Raise PlanError if sources of these content digests on this base are another merge."""
        recipe = self.document.recipe()
        bases = [replace(base, dtype=dtype) for dtype in DTYPES]
        if self.digest is None or self.digest in [recipe.digest(digests, b) for b in bases]:
            return
        raise PlanError(
            f"{self.label} has the digest {self.digest}, and its recipe on {base.name} with the "
            "sources as they are now has another: the base is not the server's, or a folder of a "
            "source was changed"
        )


def find_in_settings(
    settings: Settings, name: str, revision: int | None, progress: Progress
) -> tuple[FoundPreset, str, Path]:
    """Find a preset where `mergeserve serve` with these settings would: in the database, else in
    the files of presets. Nothing is changed.

    Returns the base too, as it was named and its folder. Raises PlanError if there is no such
    preset, and EngineError if a model is not found.
    """
    if settings.demo:
        folder = ensure_demo_model()
        spelling = folder.name
    else:
        assert settings.model is not None
        folder, spelling = model_folder(settings.model, progress).resolve(), settings.model
    given = demo_sources() if settings.demo else {}
    given |= {spec.name: model_folder(spec.location, progress) for spec in settings.source}
    base_name = settings.served_model_name or model_id(str(folder) if settings.demo else spelling)
    url = settings.database_url or settings.database_for(_described(folder, base_name, progress))
    found = _in_database(url, name, revision, given)
    if found is None and revision is None:
        found = _in_files(settings, name, given)
    if found is not None:
        named = {spec.name: spec.parent for spec in settings.source}
        parents = {n: parent for n, parent in {**found.parents, **named}.items() if parent}
        found = replace(found, parents=parents)
    if found is None:
        label = name if revision is None else f"{name}@{revision}"
        raise PlanError(
            f"there is no preset {label} in the database of {base_name}, nor in --presets: give "
            "the options that serve was given, or --url"
        )
    return found, spelling, folder


def _described(folder: Path, name: str, progress: Progress) -> Base:
    """The base as its server knows it: its content, by which a database is chosen, is hashed."""
    what = "hashing the base"
    weights = open_checkpoint(folder, lambda done, total: progress(what, done, total))
    return replace(describe_base(folder), name=name, digest=weights.digest)


def _in_database(
    url: str, name: str, revision: int | None, given: Mapping[str, Path]
) -> FoundPreset | None:
    if not Path(url.removeprefix("sqlite:///")).exists():
        return None
    store = PresetStore(url)
    try:
        heads = {head.record.name: head for head in store.heads()}
        stored = heads.get(name) if revision is None else store.revision(name, revision)
        if stored is None:
            return None
        folders = {source.name: source.path for source in store.sources()} | dict(given)
        # What --source gives is what serve would take for the newest revision, whatever it was.
        digests = dict(stored.sources)
        if revision is None:
            digests = {name: own for name, own in digests.items() if name not in given}
        is_stored = len(digests) == len(stored.sources)
        parents = {source.name: source.parent or "" for source in store.sources()}
        contents = Contents(store.contents_folder)
    finally:
        store.close()
    record = stored.record
    return FoundPreset(
        document=record.document,
        label=record.label,
        folders=folders,
        digests=digests,
        contents=contents,
        digest=record.digest if is_stored else None,
        parents=parents,
    )


def _in_files(settings: Settings, name: str, given: Mapping[str, Path]) -> FoundPreset | None:
    documents = {document.name: document for document in _documents(settings)}
    document = documents.get(name)
    return None if document is None else FoundPreset(document, name, given)


def _documents(settings: Settings) -> Iterator[PresetDocument]:
    if settings.demo:
        yield from read_presets(demo_presets())
    if settings.presets:
        yield from read_presets(settings.presets)
