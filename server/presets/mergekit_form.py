"""Presets in the form of mergekit's configurations, and the way back."""

import logging
from collections.abc import Mapping

from pydantic import JsonValue

from merging.errors import MergingError
from merging.mergekit import from_mergekit, to_mergekit
from server.errors import InvalidRequestError, UnprocessableError
from server.presets.origins import Origins
from server.presets.planner import parse_recipe
from server.presets.published import Published
from server.presets.record import PresetRecord

logger = logging.getLogger(__name__)


class MergekitForm:
    """Converts between a preset's recipe and mergekit's configuration, on the present sources."""

    def __init__(self, origins: Origins, published: Published) -> None:
        self._origins = origins
        self._published = published

    def read(self, config: Mapping[str, JsonValue], preset: str) -> dict[str, JsonValue]:
        """A mergekit configuration as fields of a document; InvalidRequestError with every reason.

        A model in it is a source's name, or a path or hub id that a source was registered from.
        What it says to no effect is in the log, under the `preset`'s name, and in the document.
        """
        sources = self._published.snapshot.sources
        try:
            converted = from_mergekit(config, lambda model: self._origins.name_of(model, sources))
        except MergingError as error:
            raise InvalidRequestError(f"mergekit: {error}", param="mergekit") from error
        for ignored in converted.ignored:
            logger.warning("preset %s: %s", preset, ignored)
        return converted.fields | {"ignored": list(converted.ignored)}

    def write(self, record: PresetRecord) -> dict[str, JsonValue]:
        """A preset's recipe as mergekit's; UnprocessableError for what mergekit has no form for."""
        sources = self._published.snapshot.sources
        recipe = parse_recipe(record.document)
        try:
            return to_mergekit(recipe, lambda name: self._origins.location_of(name, sources))
        except MergingError as error:
            raise UnprocessableError(
                f"{record.label} has no form in mergekit: {error}", code="no_mergekit_form"
            ) from error
