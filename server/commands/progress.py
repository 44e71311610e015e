"""How far a long step is: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""Between two plain lines of one step."""


class ProgressReporter:
    """Called with what is being done, how much of it is done and how much there is, in bytes.

    A total of 0 means that nobody knows.
    """

    def __init__(self) -> None:
        self._what = ""
        self._bar: tqdm | None = None  # type: ignore[type-arg]
        self._told = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the progress of the current step."""
        if what != self._what:
            self.close()
            self._what, self._told = what, time.monotonic()
            logger.info("%s", what)
        if total and sys.stderr.isatty():
            self._show(what, done, total)
        elif total and done < total and time.monotonic() - self._told >= SECONDS:
            self._told = time.monotonic()
            logger.info("%s: %d %%", what, 100 * done // total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()


class CountReporter:
    """The same for steps that count things and run beside each other: a bar for each.

    Elsewhere than on a terminal a line is printed for each quarter of a step.
    """

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}  # type: ignore[type-arg]
        self._quarters: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the progress of one step."""
        if sys.stderr.isatty():
            if what not in self._bars:
                self._bars[what] = tqdm(desc=what, total=total, leave=False)
            self._bars[what].update(done - self._bars[what].n)
            return
        quarter = 4 * done // max(total, 1)
        if quarter > self._quarters.get(what, 0):
            self._quarters[what] = quarter
            print(f"{what}: {done} of {total}", file=sys.stderr)

    def close(self) -> None:
        """Take the bars away."""
        for bar in self._bars.values():
            bar.close()
