"""A build that waits or runs: for whom it is, and whether anybody still wants it."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from server.engine.variant import Variant
from server.errors import UnavailableError

MAX_QUEUED = 8
"""Builds that requests may have waiting. Further ones are told to come back."""

RETRY_SECONDS = 5
"""When a request that gets no weights now should come back."""

IsWaiting = Callable[[], bool]
"""Whether a request still waits."""


@dataclass(slots=True, eq=False)
class Job:
    """The build of one variant. Not locked: its owner has a lock.

    An edit that needs it waits to its end; requests give up.
    """

    future: Future[Variant] = field(default_factory=Future)
    for_edit: bool = False
    begun: bool = False
    waiters: list[IsWaiting] = field(default_factory=list)

    def join(self, is_waiting: IsWaiting | None) -> None:
        """One more needs the build: a request, or an edit if `is_waiting` is None."""
        if is_waiting is None:
            self.for_edit = True
        elif not self.begun:
            self.waiters.append(is_waiting)

    def begin(self) -> bool:
        """Begin, unless nobody waits any more."""
        self.begun = self.for_edit or any(is_waiting() for is_waiting in self.waiters)
        self.waiters.clear()
        return self.begun

    @property
    def is_queued_request(self) -> bool:
        """Whether it was not begun, and only requests need it."""
        return not (self.begun or self.for_edit)


def check_queue(jobs: Iterable[Job]) -> None:
    """UnavailableError if one more request's build would be too many."""
    if sum(job.is_queued_request for job in jobs) >= MAX_QUEUED:
        raise UnavailableError(
            f"merged weights have to be built, and {MAX_QUEUED} other builds wait: try again",
            retry_after=RETRY_SECONDS,
            code="variant_cold",
        )
