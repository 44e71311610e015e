"""How a command says why it failed."""

import sys

from merging.errors import MergingError
from server.commands.early import MistakesError


def fail(command: str, error: Exception) -> int:
    """One line for every reason on stderr; the exit code."""
    reasons = error.reasons if isinstance(error, MergingError | MistakesError) else (str(error),)
    for reason in reasons:
        print(f"mergeserve {command}: {' '.join(reason.split())}", file=sys.stderr)
    return 1
