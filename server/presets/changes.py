"""What each kind of edit makes of a preset: the document that it asks for."""

from collections.abc import Callable, Iterable

from server.errors import ConflictError, NotFoundError
from server.presets.document import PresetDocument, check_same_name
from server.presets.editing import patched
from server.presets.record import StoredRevision
from server.presets.snapshot import Preset
from server.suggestion import did_you_mean

Change = Callable[[Preset | None], PresetDocument]
"""Makes the document that an edit asks for out of the preset as it is."""


def creation(document: PresetDocument) -> Change:
    """A preset that must not exist."""

    def change(current: Preset | None) -> PresetDocument:
        _check_absent(current)
        return document

    return change


def replacement(name: str, document: PresetDocument) -> Change:
    """This document, whatever there is."""
    check_same_name(name, document.name)
    return lambda current: document


def merge_patching(name: str, patch: object, known: Iterable[str] = ()) -> Change:
    """The document with an RFC 7396 merge patch applied; `known` are names of presets."""
    return lambda current: patched(existing(current, name, known).record, patch)


def return_to(
    name: str, find: Callable[[Preset], StoredRevision], known: Iterable[str] = ()
) -> Change:
    """The document of the kept revision that `find` finds; `known` are names of presets."""

    def change(current: Preset | None) -> PresetDocument:
        preset = existing(current, name, known)
        kept = find(preset)
        _check_contents(kept, preset)
        return kept.record.document

    return change


def existing(preset: Preset | None, name: str, known: Iterable[str] = ()) -> Preset:
    """The preset; NotFoundError if there is none. `known` are names of those that there are."""
    if preset is None:
        raise NotFoundError(
            f"there is no preset {name!r}. {did_you_mean(name, known)}GET /v1/presets lists those "
            "that exist",
            param="name",
        )
    return preset


def _check_absent(preset: Preset | None) -> None:
    """ConflictError if the preset exists."""
    if preset is not None:
        raise ConflictError(
            f"preset {preset.record.name!r} exists already, at revision {preset.record.revision}: "
            "PUT or PATCH edits it",
            param="name",
        )


def _check_contents(kept: StoredRevision, preset: Preset) -> None:
    """ConflictError if a rollback would keep the document, and not bring the old weights back."""
    if not is_current(kept.record.document, preset):
        return
    present = preset.head.sources
    changed = [name for name, digest in sorted(kept.sources.items()) if present.get(name) != digest]
    if changed:
        raise ConflictError(
            f"{preset.record.label} has the document of {kept.record.label} already, and source "
            f"{', '.join(changed)} has other content than in {kept.record.label}: PUT that "
            "content back first",
            param="revision",
        )


def is_current(document: PresetDocument, preset: Preset) -> bool:
    """Whether a preset already is what a document asks for."""
    current = preset.record
    return current.state != "failed" and document.content() == current.document.content()
