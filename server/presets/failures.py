"""Variants that could not be built a moment ago: they are not tried again so soon."""

import time
from collections import OrderedDict
from collections.abc import Sequence

FAILURE_SECONDS = 30.0
"""A variant that could not be built is not tried again so soon, unless by an edit."""

NUM_FAILURES = 256


class Failures:
    """The reasons of the last failures by digest. Not locked: its owner has a lock."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[tuple[str, ...], float]] = OrderedDict()

    def note(self, digest: str, reasons: Sequence[str]) -> None:
        """A variant could not be built, for these reasons."""
        self._failures.pop(digest, None)
        self._failures[digest] = tuple(reasons), time.monotonic()
        while len(self._failures) > NUM_FAILURES:
            self._failures.popitem(last=False)

    def forget(self, digest: str) -> None:
        """It was built after all."""
        self._failures.pop(digest, None)

    def recent(self, digest: str) -> tuple[str, ...] | None:
        """Why it is not tried again yet; None if it may be."""
        reasons, at = self._failures.get(digest, (None, 0.0))
        return reasons if time.monotonic() - at < FAILURE_SECONDS else None


def forget_frames(error: BaseException) -> None:
    """Let go of what the frames of a failed build hold: its weights. Errors may be kept."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
