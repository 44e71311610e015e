"""The tokens that end a model's answers, as its files name them."""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

FILES: Final = ("generation_config.json", "config.json")
TEXT_CONFIGS: Final = ("text_config", "language_config", "llm_config")
"""Where the config of a text model stands inside that of a multimodal one."""


def stop_tokens_in_files(folder: Path) -> frozenset[int]:
    """The ids that generation_config.json and config.json give together.

    The files are read, not transformers' objects of them, whose classes have ids of other models
    as defaults. Raises ValueError that names the file for one that is no JSON object, or whose
    eos_token_id is no id.
    """
    paths = [folder / name for name in FILES]
    return frozenset(i for path in paths if path.is_file() for i in _ids_in(path))


def _ids_in(path: Path) -> Iterator[int]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object")
    parts = [config, *(config.get(name) for name in TEXT_CONFIGS)]
    for part in parts:
        if isinstance(part, dict):
            yield from _ids(part.get("eos_token_id"), path)


def _ids(value: Any, path: Path) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for item in ids:
        if type(item) is not int:
            raise ValueError(f"{path}: eos_token_id {value!r} is neither a token id nor a list")
    return ids


def known_tokens(ids: Iterable[int], vocab_size: int, folder: Path) -> frozenset[int]:
    """Those of the ids that the model has; of others, such as -1, the log tells."""
    given = frozenset(ids)
    known = frozenset(i for i in given if 0 <= i < vocab_size)
    for wrong in sorted(given - known):
        logger.warning(
            "%s: the stop token %d is none of the model's %d tokens, and is left out",
            folder,
            wrong,
            vocab_size,
        )
    return known
