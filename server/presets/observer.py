"""Who is told about edits: the server's metrics implement it."""

from collections.abc import Mapping
from typing import Protocol


class CatalogObserver(Protocol):
    """Called after the fact, on the thread that edited."""

    def preset_edited(
        self, preset: str, operation: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """An edit ended. Outcomes: changed, unchanged, refused (the caller's mistake), failed.

        Operations: create, replace, patch, rollback, delete, and source, where new content of a
        source made the revision. `preset` is empty where no such preset exists. Phases: validate,
        plan, commit, publish.
        """

    def presets_changed(self, revisions: Mapping[str, tuple[int, str]]) -> None:
        """What serves now: (revision, digest) of every preset by name."""


class NullObserver:
    """Observes nothing."""

    def preset_edited(
        self, preset: str, operation: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """Do nothing."""

    def presets_changed(self, revisions: Mapping[str, tuple[int, str]]) -> None:
        """Do nothing."""
