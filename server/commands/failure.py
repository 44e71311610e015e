"""How a command says why it failed."""

import sys
from collections.abc import Sequence

from merging.errors import MergingError


class MistakesError(Exception):
    """A command that cannot work, and the exit code that says so."""

    def __init__(self, reasons: Sequence[str], code: int = 1) -> None:
        super().__init__("; ".join(reasons))
        self.reasons, self.code = tuple(reasons), code


def fail(command: str, error: Exception) -> int:
    """One line for every reason on stderr; the exit code."""
    reasons = error.reasons if isinstance(error, MergingError | MistakesError) else (str(error),)
    for reason in reasons:
        print(f"mergeserve {command}: {' '.join(reason.split())}", file=sys.stderr)
    return 1
