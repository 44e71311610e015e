"""What the name of a model means: a folder of this machine, or a hub id. Nothing is read."""

import re
from pathlib import Path

from merging.not_weights import not_a_folder
from server.engine.errors import ModelLoadError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(rf"{_PART}/{_PART}")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, OWNER/NAME, and is no path of this machine."""
    return _HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def local_folder(model: str | Path) -> Path | None:
    """The folder that is meant, or None for a hub id.

    Raises ModelLoadError for what is neither. A bare name is never taken for a hub id: a folder
    that is misspelled must not fetch a stranger's model.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(not_a_folder(path))
    if is_hub_id(str(model)):
        return None
    raise ModelLoadError(
        f"{model} is not there: give the path of a folder, or a hub id such as OWNER/NAME"
    )
