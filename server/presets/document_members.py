"""What an ensemble in a document may name as its members, so that a revision stays what it is."""

from collections.abc import Mapping

from merging.recipe import BASE
from server.errors import InvalidRequestError, NotFoundError
from server.presets.document import PresetDocument
from server.presets.names import parse_model_string
from server.presets.planner import used_sources
from server.presets.snapshot import Preset


def check_members(document: PresetDocument, presets: Mapping[str, Preset]) -> None:
    """InvalidRequestError unless every member is the base, a source of the recipe, or a revision
    of another preset: what else a name stands for may change, and the revision would not.
    """
    for name, member in document.ensemble.members.items():
        model = member.model or name
        if model == BASE or model in used_sources(document):
            continue
        field = f"ensemble.members.{name}.model"
        try:
            parsed = parse_model_string(model)
        except NotFoundError as error:
            raise InvalidRequestError(f"{field}: {error.message}", param=field) from error
        if parsed.revision is None:
            raise InvalidRequestError(
                f"{field}: {model!r} is neither base, nor a source of the preset, nor PRESET@N, a "
                "revision of another preset: a source goes into sources, with a weight of 0 if the "
                "merge is to be without it",
                param=field,
            )
        preset = presets.get(parsed.name)
        if preset is None or parsed.revision > preset.record.revision:
            raise InvalidRequestError(f"{field}: there is no {model!r}", param=field)
