"""How far a long step is: a bar on a terminal, plain lines elsewhere."""

import logging
import sys

from tqdm import tqdm

logger = logging.getLogger(__name__)


class ProgressReporter:
    """Called with what is being done, how much of it is done and how much there is, in bytes.

    A total of 0 means that nobody knows.
    """

    def __init__(self) -> None:
        self._what = ""
        self._bar: tqdm | None = None  # type: ignore[type-arg]

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the progress of the current step."""
        if what != self._what:
            self.close()
            self._what = what
            logger.info("%s", what)
        if total and sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False)
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
