"""Did you mean …? The name that a mistyped one was probably to be."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'tutor'? `, to be put before what comes next; empty if no name is close."""
    by_folded = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), by_folded, n=1, cutoff=0.6)
    return f"Did you mean {by_folded[close[0]]!r}? " if close else ""
