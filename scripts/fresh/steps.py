"""What is being done, and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Steps:
    """Prints a line for each step as it ends."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first step began."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Time what is done inside."""
        began = time.monotonic()
        outcome = "failed"
        print(f"....   {what}", flush=True)
        try:
            yield
            outcome = "ok"
        finally:
            print(f"{outcome:6} {what}: {time.monotonic() - began:.1f} s", flush=True)
