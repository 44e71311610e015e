"""Turns: who waits for a build does so one after the other, and only for the same name."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock for every name, as long as somebody wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Run a block when nobody else runs one for this name."""
        with self._lock:
            turn, num_wanting = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = turn, num_wanting + 1
        try:
            with turn:
                yield
        finally:
            with self._lock:
                _, num_wanting = self._locks.pop(name)
                if num_wanting > 1:
                    self._locks[name] = turn, num_wanting - 1
