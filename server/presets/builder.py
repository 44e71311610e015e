"""Finishing revisions in the background: those whose editor did not wait."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from merging.plan import Plan
from server.errors import ServiceError
from server.presets.published import Published
from server.presets.record import PresetRecord, StoredRevision
from server.presets.revising import ready
from server.presets.snapshot import Preset, Serving
from server.presets.store import PresetStore

logger = logging.getLogger(__name__)


class Builder:
    """One thread that publishes committed revisions, in the order in which they were made."""

    def __init__(self, store: PresetStore, published: Published) -> None:
        self._store = store
        self._published = published
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preset-builder")

    def submit(self, stored: StoredRevision, plan: Plan) -> None:
        """Publish a revision soon. It is on disk already: a restart finishes what is cut off."""
        self._executor.submit(_logged, lambda: self.finish(stored, plan))

    def finish(self, stored: StoredRevision, plan: Plan) -> None:
        """Publish a revision, unless it was deleted or a newer one serves."""
        record = stored.record
        with self._published.lock:
            preset = self._published.snapshot.presets.get(record.name)
            if preset is None or not self._is_kept(record, preset.record):
                return
            finished = _finished(preset, ready(stored, plan))
            if finished is not preset:
                self._published.publish([finished])

    def _is_kept(self, record: PresetRecord, newest: PresetRecord) -> bool:
        """Mark a revision as built; False if it was deleted or pruned meanwhile."""
        try:
            with self._store.writing() as writer:
                return writer.update_revision(record.name, record.revision, state="ready")
        except ServiceError as error:
            logger.warning("the state of %s could not be saved: %s", record.label, error)
            return newest.revision == record.revision

    def close(self) -> None:
        """Finish what was submitted, and stop."""
        self._executor.shutdown(wait=True)


def _finished(preset: Preset, finished: Preset) -> Preset:
    """The preset once the revision of `finished` is built."""
    built: Serving | None = finished.serving
    assert built is not None, "a finished revision serves"
    if preset.record.state != "building":
        return preset
    if preset.record.revision == built.revision:
        return finished
    is_newer = preset.serving is None or preset.serving.revision < built.revision
    return Preset(preset.head, built) if is_newer else preset


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # the thread must live on for the next revision
        logger.exception("a revision could not be published; a restart will publish it")
