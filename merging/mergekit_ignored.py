"""What a configuration holds that mergekit does not read, told in words: it does nothing."""

import difflib
from collections.abc import Sequence

from merging.methods.method import Method


def unknown_key(method: Method | None, key: str, path: str, known: Sequence[str]) -> str:
    """What to say of a key that mergekit skips; `path` ends in a dot, or is empty."""
    if key == "name" and not path:
        return "name: mergekit does not read it; it does nothing"
    if method is not None and method.parameter(key) is not None and "parameters" in known:
        return (
            f"{path}{key}: mergekit does not read it here, and it does nothing; parameters stand "
            f"under {path}parameters"
        )
    return f"{path}{key}: mergekit does not read it; it does nothing{_meant(key, known)}"


def unread_parameter(method: Method, name: str, path: str, *, of_source: bool) -> str | None:
    """Why a method does not read a parameter at this level; None if it does.

    `of_source`: the level is one model's; else it is that of all models.
    """
    parameter = method.parameter(name)
    if parameter is None:
        meant = _meant(name, [p.name for p in method.parameters])
        return f"{path}.{name}: {method.name} does not read it; it does nothing{meant}"
    if of_source and parameter.scope == "recipe":
        return (
            f"{path}.{name}: {method.name} reads it for all models together, under the parameters "
            "of the whole merge or of a slice; here it does nothing"
        )
    return None


def _meant(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
