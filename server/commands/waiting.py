"""That something goes on, while an answer is waited for of which nobody knows how far it is."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 1.0
"""What takes less is not worth a word."""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show `what` with the seconds that it takes on a terminal, and one plain line elsewhere."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(what, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(what: str, done: threading.Event) -> None:
    started, is_terminal = time.monotonic(), sys.stderr.isatty()
    while not done.wait(SECONDS):
        if not is_terminal:
            print(f"{what} …", file=sys.stderr)
            return
        print(f"\r{what} … {time.monotonic() - started:.0f} s", end="", file=sys.stderr, flush=True)
    if is_terminal and time.monotonic() - started >= SECONDS:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
