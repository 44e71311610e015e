"""Packing: the faster kernels of variants that stay, made behind the requests that they serve."""

import logging
import threading
import time
import weakref
from collections.abc import Callable

from server.engine.memory import give_back
from server.engine.variant import Variant

logger = logging.getLogger(__name__)

DELAY = 1.0
"""Seconds from the first request for a variant to its packing: one that is edited on is left."""


class Packer:
    """One thread that packs the variants that are asked for, once each, when nothing is built."""

    def __init__(self, is_kept: Callable[[Variant], bool], is_busy: Callable[[], bool]) -> None:
        self._is_kept, self._is_busy = is_kept, is_busy
        self._seen: weakref.WeakSet[Variant] = weakref.WeakSet()
        self._waiting: list[tuple[float, weakref.ref[Variant]]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def used(self, variant: Variant) -> None:
        """A request asks for a variant: pack it soon, unless that was done."""
        if variant in self._seen:
            return
        with self._changed:
            self._seen.add(variant)
            self._waiting.append((time.monotonic() + DELAY, weakref.ref(variant)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="packer", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Stop after the variant that is being packed."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            # Variants that were replaced before they were packed leave their memory to the next
            # build, which takes it sooner from here than from the system.
            if self._pack(due):
                give_back()

    def _pack(self, due: "weakref.ref[Variant]") -> bool:
        """Pack a variant, if it is still kept, and say so. Nothing here holds it afterwards."""
        variant = due()
        if variant is None or not self._is_kept(variant):
            return False
        try:
            variant.pack()
        except Exception:  # it serves as it is, only slower
            logger.exception("a variant could not be packed")
        return True

    def _next(self) -> "weakref.ref[Variant] | None":
        """Wait for the next variant that is due; None at the end."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                wait = self._waiting[0][0] - now if self._waiting else None
                if wait is not None and wait <= 0:
                    if not self._is_busy():
                        return self._waiting.pop(0)[1]
                    wait = DELAY
                self._changed.wait(wait)
            return None
