"""Sources of a merge that are adapters on other sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merging.checkpoint import Progress
from merging.errors import PlanError, SourceError
from server.adapters.reader import Content
from server.presets.sources import SourceRegistry
from server.setting_values import PARENT


def split_parents(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The locations and the parents in `DIR_OR_HUB_ID,parent=NAME`, by the name of --source.

    Raises PlanError for a parent that is no name of --source.
    """
    locations, parents = {}, {}
    for name, text in given.items():
        location, comma, parent = text.rpartition(PARENT) if PARENT in text else (text, "", "")
        locations[name] = location
        if comma:
            parents[name] = parent
    unknown = sorted({parent for parent in parents.values() if parent not in locations})
    if unknown:
        raise PlanError(f"parent: {', '.join(unknown)} is not given: name it with --source")
    return locations, parents


@dataclass(frozen=True, slots=True)
class Lineage:
    """Reads sources in `folders`, each on its parent; both are by name."""

    registry: SourceRegistry
    folders: Mapping[str, Path]
    parents: Mapping[str, str]
    progress: Progress

    def read(self, name: str, children: tuple[str, ...] = ()) -> tuple[Content, tuple[str, ...]]:
        """A source and warnings. Raises SourceError if it, or an ancestor, cannot be used."""
        parent = self.parents.get(name)
        if name in children:
            raise SourceError(f"its parents go in a circle: {', '.join(children)}")
        on = None if parent is None else self.read(parent, (*children, name))[0]
        return self.registry.read(self.folders[name], self.progress, on)
