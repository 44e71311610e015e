"""What an edit means before it is stored: its condition, its document, its next revision."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

from server.errors import InvalidRequestError, PreconditionFailedError
from server.presets.document import (
    SERVER_FIELDS,
    PresetDocument,
    check_same_name,
    parse_document,
    with_weights,
)
from server.presets.merge_patch import merge_patch
from server.presets.record import Edit, PresetRecord

CHANGING_FIELDS = frozenset({"suspect", "warnings"})
"""Fields of the server's that change while a revision stays what it is."""


def check_conditions(edit: Edit, name: str, revision: int | None) -> None:
    """Hold the edit's `If-Match` and `If-None-Match` against the current revision, if any."""
    is_at = f"preset {name!r} " + (f"is at {revision}" if revision else "does not exist")
    if edit.if_none_match_any and revision is not None:
        raise PreconditionFailedError(
            f"{is_at} and If-None-Match: * creates only; leave it out to replace the preset"
        )
    if edit.if_match_any and revision is None:
        raise PreconditionFailedError(f"{is_at} and If-Match: * edits only what exists")
    if edit.if_match is not None and revision not in edit.if_match:
        expected = ", ".join(str(number) for number in edit.if_match) or "another revision"
        raise PreconditionFailedError(
            f"{is_at} and If-Match asks for {expected}: GET it, apply the edit to what it is now, "
            "and send that revision"
        )


def patched(record: PresetRecord, patch: object) -> PresetDocument:
    """The record's document with an RFC 7396 merge patch applied to the user's fields."""
    if not isinstance(patch, dict):
        raise InvalidRequestError(
            'a merge patch is a JSON object such as {"sources": {"math": {"weight": 0.8}}}, '
            f"got {type(patch).__name__}"
        )
    current = record.server_fields()
    for field in (SERVER_FIELDS - CHANGING_FIELDS) & patch.keys():
        if patch[field] != current.get(field):
            raise InvalidRequestError(
                f"{field} belongs to the server and is {current.get(field)!r}: leave it out; "
                "If-Match compares revisions, and rollback returns to one",
                param=field,
            )
    edits = with_weights({k: v for k, v in patch.items() if k not in SERVER_FIELDS})
    document = parse_document(merge_patch(record.document.to_json(), edits))  # type: ignore[arg-type]
    check_same_name(record.name, document.name)
    return document


def cleaned(edit: Edit) -> Edit:
    """The edit with texts that the database can hold: halves of surrogate pairs are replaced."""
    author, message = (
        text.encode(errors="replace").decode() for text in (edit.author, edit.message)
    )
    return replace(edit, author=author, message=message)


class Phases:
    """Seconds that each phase of an edit took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of a block to a phase."""
        start = perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + perf_counter() - start

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by phase."""
        return dict(self._seconds)


class Observation:
    """How an edit went."""

    def __init__(self) -> None:
        self.phases = Phases()
        self.outcome = "changed"
