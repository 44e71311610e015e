"""Whether there is room for a variant: never, not yet, or now."""

import threading
import time
from collections.abc import Collection, Sequence

from merging.variant import VariantPlan
from server.errors import UnavailableError
from server.presets.jobs import RETRY_SECONDS
from server.presets.shelf import Need, Shelf
from server.presets.workshop import BuildError, Workshop

LEAVING_SECONDS = 30.0
"""A build waits so long for the end of requests that run on variants which went."""


class Admission:
    """Holds what a variant needs against what the shelf has. `lock` is the shelf's owner's."""

    def __init__(self, shelf: Shelf, lock: threading.Lock, workshop: Workshop | None) -> None:
        self._shelf, self._lock, self._workshop = shelf, lock, workshop

    def need(self, plan: VariantPlan) -> Need:
        """What a variant needs, as far as its plan tells."""
        return Need(plan.num_bytes) if self._workshop is None else self._workshop.need(plan)

    def check(
        self, plan: VariantPlan, replacing: Collection[str], need: Need | None = None
    ) -> None:
        """BuildError if a variant can never be kept. Called with the lock."""
        need = need or self.need(plan)
        shortage = self._shelf.shortage(plan.digest, need, replacing)
        if shortage is not None:
            raise BuildError([shortage])

    def check_all(self, plans: Sequence[VariantPlan], replacing: Collection[str]) -> None:
        """BuildError if variants can never be kept together. Called with the lock."""
        needs = [self.need(plan) for plan in plans]
        need = Need(sum(need.weights for need in needs), sum(need.kv for need in needs))
        first, *rest = (plan.digest for plan in plans)
        shortage = self._shelf.shortage(first, need, {*rest, *replacing})
        if shortage is not None:
            raise BuildError([f"its {len(plans)} members run together: {shortage}"])

    def wait(
        self,
        plan: VariantPlan,
        replacing: Collection[str],
        need: Need,
        closing: threading.Event,
    ) -> None:
        """Wait until a variant has room beside what requests still run on; UnavailableError if that
        takes too long, BuildError if it never will have.
        """
        deadline = time.monotonic() + LEAVING_SECONDS
        while True:
            with self._lock:
                self.check(plan, replacing, need)
                crowding = self._shelf.crowding(plan.digest, need, replacing)
                if crowding is None:
                    self._shelf.expect(need.num_bytes)
                    return
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"cannot be built yet: {crowding}: try again",
                    retry_after=RETRY_SECONDS,
                    code="variant_memory",
                )
            if closing.wait(0.02):
                raise draining()


def draining() -> UnavailableError:
    """The error for whoever waits for a build when the server stops."""
    return UnavailableError("the server is shutting down", code="draining")
