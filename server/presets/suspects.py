"""Says which presets and sources are likely to write gibberish: to the log and to the metrics."""

import logging
from collections.abc import Iterable

from server.presets.doubts import Doubts
from server.presets.observer import CatalogObserver
from server.presets.preset_warnings import PresetWarnings, preset_warnings
from server.presets.snapshot import Preset, Snapshot

logger = logging.getLogger(__name__)

HELP = "docs/gibberish.md says what that means and what to do"


class Suspects:
    """Remembers what was told, so that everything is told once. Used with the catalog's lock."""

    def __init__(self, doubts: Doubts, observer: CatalogObserver) -> None:
        self.doubts = doubts
        self._observer = observer
        self._presets: dict[str, tuple[str, ...]] = {}
        self._sources: dict[str, tuple[str, ...]] = {}

    def warnings(self, preset: Preset, snapshot: Snapshot) -> PresetWarnings | None:
        """What is to be warned of in the revision that a preset serves; None if none does."""
        serving = preset.serving
        if serving is None:
            return None
        record = serving.stored.record
        return preset_warnings(
            record.document, serving.plan, snapshot.sources, self.doubts, record.label
        )

    def tell(self, snapshot: Snapshot, presets: Iterable[str] | None = None) -> None:
        """Tell what is new of these presets; None: of all, and of the sources."""
        for name in snapshot.presets.keys() | self._presets if presets is None else presets:
            preset = snapshot.presets.get(name)
            found = None if preset is None else self.warnings(preset, snapshot)
            if preset is None or found is None:
                self._forget_preset(name)
                continue
            self._log(preset.record.label, found.doubts, self._presets.get(name, ()))
            if name not in self._presets or bool(self._presets[name]) != found.is_suspect:
                self._observer.preset_suspected(name, found.is_suspect)
            self._presets[name] = found.doubts
        if presets is None:
            self._tell_sources(snapshot)

    def _forget_preset(self, name: str) -> None:
        if self._presets.pop(name, None) is not None:
            self._observer.preset_suspected(name, None)

    def _tell_sources(self, snapshot: Snapshot) -> None:
        for name in snapshot.sources.keys() | self._sources:
            source = snapshot.sources.get(name)
            if source is None or source.content is None:
                if self._sources.pop(name, None) is not None:
                    self._observer.source_suspected(name, None)
                continue
            found = self.doubts.of_source(source.content)
            self._log(f"source {name}", found, self._sources.get(name, ()))
            self._observer.source_suspected(name, bool(found))
            self._sources[name] = found

    def _log(self, what: str, doubts: Iterable[str], told: Iterable[str]) -> None:
        for doubt in doubts:
            if doubt not in told:
                logger.warning("%s is suspect: %s (%s)", what, doubt, HELP)
