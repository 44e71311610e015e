"""Adapters that were trained on the base with another source on it: their parents."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from server.adapters.reader import Content
from server.errors import InvalidRequestError, UnprocessableError
from server.presets.sources import Source


class Child(Protocol):
    """What may have a parent: a source, registered or as it is stored."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def parent(self) -> str | None:
        """The name of its parent."""


def parent_content(sources: Mapping[str, Source], name: str, parent: str | None) -> Content | None:
    """The content of a source's parent; None if it has no parent.

    Raises InvalidRequestError if there is none of that name, or it would be its own ancestor, and
    UnprocessableError if that cannot be used.
    """
    if parent is None:
        return None
    if parent == name or name in ancestors(sources, parent):
        raise InvalidRequestError(
            f"parent: {name!r} cannot have the parent {parent!r}, which is it, or has it as its "
            "own: name the source that it was trained on",
            param="parent",
        )
    source = sources.get(parent)
    if source is None:
        raise InvalidRequestError(
            f"parent: there is no source {parent!r}: register it first; GET /v1/sources lists "
            "those that exist",
            param="parent",
        )
    if source.content is None:
        raise UnprocessableError(
            f"the parent {parent!r} cannot be used: {'; '.join(source.reasons)}", param="parent"
        )
    return source.content


def ancestors(sources: Mapping[str, Source], name: str) -> list[str]:
    """The parent of a source, its parent, and so on."""
    found: list[str] = []
    source = sources.get(name)
    while source is not None and source.parent is not None and source.parent not in found:
        found.append(source.parent)
        source = sources.get(source.parent)
    return found


def children(sources: Mapping[str, Source], name: str) -> list[str]:
    """The sources that are adapters on this one."""
    return [own for own, source in sorted(sources.items()) if source.parent == name]


def descendants(sources: Mapping[str, Source], name: str) -> list[str]:
    """The children of a source, and theirs, each after its parent."""
    found = children(sources, name)
    for child in found:
        found += [own for own in children(sources, child) if own not in found]
    return found


def parents_first(stored: Mapping[str, Child]) -> Iterator[str]:
    """The names, each after that of its parent; what goes in a circle comes last."""
    done: set[str] = set()
    left = sorted(stored)
    while left:
        ready = [n for n in left if stored[n].parent in done or stored[n].parent not in left]
        yield from (ready := ready or left)
        done.update(ready)
        left = [name for name in left if name not in done]
