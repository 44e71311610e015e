"""What models in a mergekit configuration are called here, and the way back."""

import os
from collections.abc import Mapping
from pathlib import Path

from merging.base import Base
from merging.recipe import BASE
from server.presets.names import is_base
from server.presets.source_folders import SourceFolders
from server.presets.sources import Source


class Origins:
    """Names of models by what they were registered from: hub ids, and paths.

    `location` is where the base is from: a hub id, or its folder.
    """

    def __init__(self, base: Base, location: str, folders: SourceFolders) -> None:
        self._base, self._location, self._folders = base, location, folders
        self._locations: dict[str, str] = {}  # of sources, by name

    def note(self, name: str, location: str) -> None:
        """Remember what the operator registered a source from."""
        self._locations[name] = location

    def name_of(self, model: str, sources: Mapping[str, Source]) -> str | None:
        """The source, or "base", that a model's name, hub id or path means; None if it is none."""
        if is_base(model, self._base) or model == self._location:
            return BASE
        if model in sources:
            return model
        named = (name for name in sorted(sources) if self._locations.get(name) == model)
        return next(named, None) or self._at_path(model, sources)

    def location_of(self, name: str, sources: Mapping[str, Source]) -> str:
        """What mergekit finds a model by: its hub id, or its folder."""
        if name == BASE:
            return self._location or self._base.name
        source = sources.get(name)
        return self._locations.get(name) or (name if source is None else str(source.path))

    def _at_path(self, model: str, sources: Mapping[str, Source]) -> str | None:
        paths = {Path(os.path.realpath(model))} if "\0" not in model else set()
        paths.update(self._folders.candidates(model))
        if self._location and Path(os.path.realpath(self._location)) in paths:
            return BASE
        for name, source in sorted(sources.items()):
            if Path(os.path.realpath(source.path)) in paths:
                return name
        return None
