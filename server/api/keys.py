"""API keys: who holds one, and how they are written down. The values are never shown."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from server.presets.names import NAME_PATTERN


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key and the name of its holder, which is the author of edits."""

    name: str
    value: str = field(repr=False)


def parse_key(text: str) -> ApiKey:
    """Read `KEY` or `NAME:KEY`; the message of a ValueError never shows the key."""
    name, colon, value = text.strip().partition(":")
    if not colon:
        name, value = "", name
    if colon and re.fullmatch(NAME_PATTERN, name) is None:
        raise ValueError(
            "the NAME of a NAME:KEY is 1 to 64 letters, digits, dots, underscores and hyphens, "
            "and starts with a letter or a digit"
        )
    if re.fullmatch(r"[!-~]+", value) is None:
        raise ValueError("a key is one or more printable ASCII characters without spaces")
    return ApiKey(name, value)


def read_key_file(path: Path) -> list[str]:
    """One key a line; empty lines and lines that begin with # are skipped.

    A file without a key is an error: it must not leave a server open.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the key file {path} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"the key file {path} has no key: write one a line, or leave it out")
    return keys
