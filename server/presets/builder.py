"""Finishing revisions in the background: those whose editor did not wait."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from merging.plan import Plan
from server.presets.published import Published
from server.presets.record import StoredRevision
from server.presets.revising import ready
from server.presets.snapshot import Preset

logger = logging.getLogger(__name__)


class Builder:
    """One thread that publishes committed revisions, in the order in which they were made."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preset-builder")

    def submit(self, stored: StoredRevision, plan: Plan) -> None:
        """Publish a revision soon. It is on disk already: a restart finishes what is cut off."""
        self._executor.submit(_logged, lambda: self.finish(stored, plan))

    def finish(self, stored: StoredRevision, plan: Plan) -> None:
        """Publish a revision, unless it was deleted or a newer one serves."""
        with self._published.lock:
            preset = self._published.snapshot.presets.get(stored.record.name)
            if preset is None or preset.record.state != "building":
                return
            finished, number = ready(stored, plan), stored.record.revision
            if preset.record.revision == number:
                self._published.publish([finished])
            # What serves tells that the revision is of the preset's present life, not of one
            # before a deletion: only then does it serve until the newest is built.
            elif preset.serving is not None and preset.serving.revision < number:
                self._published.publish([Preset(preset.head, finished.serving)])

    def close(self) -> None:
        """Finish what was submitted, and stop."""
        self._executor.shutdown(wait=True)


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # the thread must live on for the next revision
        logger.exception("a revision could not be published; a restart will publish it")
