"""A command that is told to stop cleans up behind it, as it does after an error."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Let SIGTERM raise, as SIGINT does, so that what is unfinished is removed."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
