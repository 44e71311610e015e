"""Who is told about edits: the server's metrics implement it."""

from collections.abc import Callable, Mapping
from typing import Protocol


class CatalogObserver(Protocol):
    """Called after the fact, on the thread that edited."""

    def preset_edited(
        self, preset: str, operation: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """An edit ended. Outcomes: changed, unchanged, refused (the caller's mistake), failed.

        Operations: create, replace, patch, rollback, delete, and source, where new content of a
        source made the revision. `preset` is empty where no such preset exists. Phases: validate,
        plan, build, commit, publish.
        """

    def presets_changed(self, revisions: Mapping[str, tuple[int, str]]) -> None:
        """What serves now: (revision, digest) of every preset by name."""

    def preset_suspected(self, preset: str, is_suspect: bool | None) -> None:
        """Whether a preset is likely to write gibberish; None for one that is gone."""

    def source_suspected(self, source: str, is_suspect: bool | None) -> None:
        """Whether a source is likely to be of another base, or broken; None for one that is
        gone.
        """


class NullObserver:
    """Observes nothing."""

    def preset_edited(
        self, preset: str, operation: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """Do nothing."""

    def presets_changed(self, revisions: Mapping[str, tuple[int, str]]) -> None:
        """Do nothing."""

    def preset_suspected(self, preset: str, is_suspect: bool | None) -> None:
        """Do nothing."""

    def source_suspected(self, source: str, is_suspect: bool | None) -> None:
        """Do nothing."""


class VariantObserver(Protocol):
    """Told of variants, on any thread, and while they are locked: it must not ask back."""

    def variant_built(
        self, method: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """A build ended. Outcomes: built, refused (the recipe or its sources), failed."""

    def variants_changed(
        self,
        num_variants: int,
        num_bytes: int,
        kv_bytes: int,
        cache_bytes: int,
        num_evicted: int,
    ) -> None:
        """What is kept now, and how many variants had to go since the last time."""

    def watch_leaving(self, num_bytes: Callable[[], int]) -> None:
        """Once, at the start: `num_bytes` tells the bytes of variants that went and that requests
        still run on.
        """

    def cold_hit(self) -> None:
        """A request asked for a variant that is not there."""


class NullVariantObserver:
    """Observes nothing."""

    def variant_built(
        self, method: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """Do nothing."""

    def variants_changed(
        self,
        num_variants: int,
        num_bytes: int,
        kv_bytes: int,
        cache_bytes: int,
        num_evicted: int,
    ) -> None:
        """Do nothing."""

    def watch_leaving(self, num_bytes: Callable[[], int]) -> None:
        """Do nothing."""

    def cold_hit(self) -> None:
        """Do nothing."""
