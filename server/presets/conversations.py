"""Whose way of talking a preset has: the base's, or that of one of its sources."""

from collections.abc import Mapping

from merging.recipe import BASE
from server.engine.conversation import Conversation
from server.errors import UnprocessableError
from server.presets.document import PresetDocument
from server.presets.sources import Source


def conversation_of(document: PresetDocument, sources: Mapping[str, Source]) -> Conversation | None:
    """How conversations with a preset are written; None: as those with the base.

    UnprocessableError if it is the way of a source that is gone.
    """
    name = document.conversation
    if name in (None, BASE):
        return None
    source = sources.get(name)
    if source is None:
        raise UnprocessableError(
            f"conversation: the source {name!r}, as which preset {document.name!r} talks, is gone: "
            'register it again, or set "conversation" to "base"',
            param="conversation",
        )
    return source.conversation
