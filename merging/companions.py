"""The files beside the weights that a merged model takes over from its base."""

import json
import shutil
from pathlib import Path
from typing import Final

from merging.regular_file import read_file

PATTERNS: Final = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "additional_chat_templates/*", "generation_config.json"),
    *("*.model", "*.tiktoken", "LICENSE*", "NOTICE*"),
)
"""Tokenizer, chat templates, generation config and licence."""


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy them from one folder to another, links followed; returns their names, sorted.

    Raises OSError as the disk gives it.
    """
    found = {path for pattern in PATTERNS for path in source.glob(pattern) if path.is_file()}
    for path in found:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    return sorted(str(path.relative_to(source)) for path in found)


def set_chat_template(folder: Path, template: str) -> None:
    """Give the tokenizer in a folder another chat template: every form of the old one goes."""
    for path in (*folder.glob("chat_template*"), *folder.glob("additional_chat_templates/*")):
        path.unlink()
    config = folder / "tokenizer_config.json"
    if config.is_file():
        values = json.loads(read_file(config))
        values.pop("chat_template", None)
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
