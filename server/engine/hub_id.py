"""What a model is called on a hub, so that what fine-tunes record of their base can be compared."""

import json
from pathlib import Path

from merging.base import HUB_ID

RECORDED = ("_name_or_path", "name_or_path")
"""Fields of a config.json in which transformers notes where a model was read from."""


def find_hub_id(model: str | Path, folder: Path) -> str | None:
    """The hub id of a model: as it was asked for, or as its folder records it; None if unknown.

    A recorded path to a folder that is there is no id.
    """
    if not Path(model).expanduser().is_dir() and HUB_ID.fullmatch(str(model)):
        return str(model)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    names = [config.get(field) for field in RECORDED] if isinstance(config, dict) else []
    known = (name for name in names if isinstance(name, str) and HUB_ID.fullmatch(name))
    return next((name for name in known if not Path(name).exists()), None)
