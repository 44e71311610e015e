"""Presets given at the start: created where absent, never forced on an edited one."""

import logging
from collections.abc import Callable

from server.errors import ServiceError
from server.presets.builder import INTERNAL_ERROR
from server.presets.document import PresetDocument
from server.presets.record import Edit, PresetRecord
from server.presets.snapshot import Preset

logger = logging.getLogger(__name__)


def seed(
    document: PresetDocument,
    current: Preset | None,
    origin: str,
    create: Callable[[PresetDocument, Edit], PresetRecord],
) -> str | None:
    """Create a preset if there is none of its name. Returns what the log should say, if anything.

    `origin` names the file that the document is from.
    """
    name = document.name
    if current is not None:
        record = current.record
        if document.content() == record.document.content():
            return None
        return (
            f"preset {name!r} of {origin} is not applied: it differs from {record.label}, which "
            f"is kept; delete the preset to take it from {origin} again"
        )
    try:
        record = create(document, Edit(message=f"from {origin}"))
    except ServiceError as error:
        return f"preset {name!r} of {origin} is not created: {error.message}"
    except Exception:  # one preset must not stop the start
        logger.exception("preset %r of %s is not created", name, origin)
        return f"preset {name!r} of {origin} is not created: {INTERNAL_ERROR}"
    return f"{record.label} is created from {origin}"
