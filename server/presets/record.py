"""What the catalog hands out and takes in around a document: records, edits, cards."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from server.presets.document import PresetDocument
from server.presets.preset_warnings import PresetWarnings
from server.presets.source_delta import SourceDelta

State = Literal["ready", "building", "cold", "failed"]


@dataclass(frozen=True, slots=True)
class PresetRecord:
    """One revision of a preset: the document plus the server's fields.

    `created_at` is the revision's; `updated_at` is when the preset last changed. `reasons` say why
    the state is "failed". `warnings` are of the revision that serves, None for others.
    """

    document: PresetDocument
    revision: int
    digest: str
    state: State
    path: str
    author: str
    message: str
    created_at: datetime
    updated_at: datetime
    reasons: tuple[str, ...] = ()
    warnings: PresetWarnings | None = None

    @property
    def name(self) -> str:
        """The preset's name."""
        return self.document.name

    @property
    def label(self) -> str:
        """`tutor@7`."""
        return f"{self.name}@{self.revision}"

    def server_fields(self) -> dict[str, JsonValue]:
        """The fields that the server owns; `reasons` if it has failed."""
        reasons: dict[str, JsonValue] = {"reasons": list(self.reasons)} if self.reasons else {}
        warnings: dict[str, JsonValue] = {}
        if self.warnings is not None:
            warnings = {"suspect": self.warnings.is_suspect, "warnings": [*self.warnings.all]}
        return {
            **reasons,
            **warnings,
            "revision": self.revision,
            "digest": self.digest,
            "state": self.state,
            "path": self.path,
            "author": self.author,
            "message": self.message,
            "created_at": timestamp(self.created_at),
            "updated_at": timestamp(self.updated_at),
        }

    def to_json(self) -> dict[str, JsonValue]:
        """The document as it is served."""
        return {**self.document.to_json(), **self.server_fields()}


@dataclass(frozen=True, slots=True)
class Edit:
    """Who edits, why, and under which condition.

    `if_match` holds the revisions that `If-Match` names: None is no condition, () never matches.
    With `wait` False the edit returns before its revision serves.
    """

    author: str = ""
    message: str = ""
    if_match: tuple[int, ...] | None = None
    if_match_any: bool = False
    if_none_match_any: bool = False
    wait: bool = True


@dataclass(frozen=True, slots=True)
class EditResult:
    """The record after an edit; whether the preset is new, and whether a revision was made."""

    record: PresetRecord
    created: bool
    changed: bool


CONVERT_TO_LORA = "mergeserve inspect {path} --model BASE --to-lora RANK --out DIR"


@dataclass(frozen=True, slots=True)
class SourceCard:
    """A registered source. It `is_suspect` where its `warnings` begin with why it is likely to be
    of another base, or broken. `base_name` and `base_digest` are what it records of its base.

    `kind` is None where the folder cannot be read. `parent` names the source that it is an adapter
    on.
    """

    name: str
    path: Path
    kind: Literal["adapter", "checkpoint"] | None
    digest: str
    state: Literal["ready", "failed"]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    num_bytes: int
    base_name: str | None
    base_digest: str | None
    delta: SourceDelta | None
    parent: str | None
    presets: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    is_suspect: bool = False

    def to_json(self) -> dict[str, JsonValue]:
        """The source as it is served."""
        return {
            "name": self.name,
            "kind": self.kind,
            "path": str(self.path),
            "digest": self.digest,
            "state": self.state,
            "suspect": self.is_suspect,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "num_bytes": self.num_bytes,
            "base_name": self.base_name,
            "base_digest": self.base_digest,
            "delta": self._delta_json(),
            "parent": self.parent,
            "presets": list(self.presets),
            "created_at": timestamp(self.created_at),
            "updated_at": timestamp(self.updated_at),
        }

    def _delta_json(self) -> dict[str, JsonValue] | None:
        if self.delta is None:
            return None
        told: dict[str, JsonValue] = {
            "form": self.delta.form,
            "reasons": list(self.delta.reasons),
            "seconds": self.delta.seconds,
        }
        if self.delta.form == "dense":
            told["convert"] = CONVERT_TO_LORA.format(path=self.path)
        return told


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Something that can be called as `model`. `created` is in seconds since 1970."""

    id: str
    root: str
    parent: str | None
    revision: int | None
    created: int

    def to_json(self) -> dict[str, JsonValue]:
        """The card as `GET /v1/models` lists it."""
        card: dict[str, JsonValue] = {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "mergeserve",
            "root": self.root,
            "parent": self.parent,
        }
        return card if self.revision is None else {**card, "revision": self.revision}


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision as the database keeps it: `sources` maps the names it uses to content digests."""

    record: PresetRecord
    sources: Mapping[str, str]


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC, with microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)
