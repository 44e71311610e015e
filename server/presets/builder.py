"""Finishing revisions in the background: those whose editor did not wait."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from server.errors import ServiceError
from server.presets.published import Published
from server.presets.record import PresetRecord, StoredRevision
from server.presets.revising import failed, ready
from server.presets.snapshot import Preset, Serving
from server.presets.store import PresetStore
from server.presets.variants import Variants
from server.presets.workshop import BuildError

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error; the server's log says why"
"""What callers are told of our own mistakes."""


class Builder:
    """One thread that publishes committed revisions, in the order in which they were made."""

    def __init__(self, published: Published, variants: Variants, store: PresetStore) -> None:
        self._published = published
        self._variants = variants
        self._store = store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preset-builder")

    def submit(self, serving: Serving) -> None:
        """Publish a revision soon. It is on disk as building: a restart submits it again."""
        self._executor.submit(_logged, lambda: self.finish(serving))

    def finish(self, serving: Serving) -> None:
        """Build and publish a revision, unless it was deleted or a newer one serves.

        One that cannot be built has failed, and what served before goes on serving.
        """
        stored = serving.stored
        preset = self._waiting(stored)
        if preset is None:
            return
        try:
            snapshot = self._published.snapshot
            served = snapshot.weights_now(Preset(stored, serving))
            replacing = self._published.pinned_by([stored.record.name])
            self._variants.check(served, replacing)
            with self._variants.holding(served, snapshot.weights_now(preset), replacing):
                self._publish(serving)
        except ServiceError as error:
            if error.code == "draining":
                raise  # a restart builds it
            logger.error("%s cannot be built: %s", stored.record.label, error.message)
            self._fail(stored, error.reasons if isinstance(error, BuildError) else [error.message])
        except Exception:
            logger.exception("%s cannot be built", stored.record.label)
            self._fail(stored, [INTERNAL_ERROR])

    def build_pinned(self) -> None:
        """Build the pinned presets; what cannot be built is said in the log, and stays cold."""
        snapshot = self._published.snapshot
        for preset in snapshot.presets.values():
            serving = preset.serving
            if serving is not None and serving.stored.record.document.pinned:
                try:
                    for plan in snapshot.weights_now(preset):
                        self._variants.build(plan)
                except ServiceError as error:
                    logger.error("%s is pinned and %s", serving.stored.record.label, error.message)
                except Exception:
                    logger.exception("%s is pinned and was not built", serving.stored.record.label)

    def close(self) -> None:
        """Finish what was submitted, and stop."""
        self._executor.shutdown(wait=True)

    def _waiting(self, stored: StoredRevision) -> Preset | None:
        """The preset, if it waits for this revision."""
        preset = self._published.snapshot.presets.get(stored.record.name)
        if preset is None or preset.record.state == "ready":
            return None
        number, serving = stored.record.revision, preset.serving
        if preset.record.revision == number:
            return preset if preset.record.state == "building" else None
        # What serves tells that the revision is of the preset's present life, not of one
        # before a deletion: only then does it serve until the newest is built.
        return preset if serving is not None and serving.revision < number else None

    def _publish(self, serving: Serving) -> None:
        stored = serving.stored
        with self._published.lock:
            preset = self._waiting(stored)
            if preset is None:
                return
            finished = ready(serving)
            self._published.check_pinned([finished])
            self._mark(finished.record)
            is_newest = preset.record.revision == stored.record.revision
            after = finished if is_newest else Preset(preset.head, finished.serving)
            self._published.publish([after])

    def _fail(self, stored: StoredRevision, reasons: Sequence[str]) -> None:
        with self._published.lock:
            preset = self._waiting(stored)
            if preset is None:
                return
            after = failed(stored, reasons, preset.serving)
            self._mark(after.record)
            if preset.record.revision == stored.record.revision:
                self._published.publish([after])

    def _mark(self, record: PresetRecord) -> None:
        """Store how a build ended. If that cannot be, the next start builds it once more."""
        try:
            with self._store.writing() as writer:
                writer.mark_revision(record)
        except Exception:  # who asks must not be told that it is building for ever
            logger.exception("%s could not be marked as %s", record.label, record.state)


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # the thread must live on for the next revision
        logger.exception("a revision could not be published; a restart will publish it")
