"""How long a request may take: all that it waits for, one after the other, shares one deadline."""

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Self, TypeVar

from server.api.errors import RequestTimeoutError

Result = TypeVar("Result")


@dataclass(slots=True)
class Deadline:
    """The moment, in the event loop's time, at which a request has taken too long: `seconds` after
    it began. None: never. `waited`: seconds of these in which its weights were being built.
    """

    seconds: float | None = None
    at: float | None = None
    waited: float = 0.0

    @classmethod
    def after(cls, seconds: float | None) -> Self:
        """The deadline of a request that begins now. On the event loop's thread."""
        at = None if seconds is None else asyncio.get_running_loop().time() + seconds
        return cls(seconds, at)

    @property
    def left(self) -> float:
        """Seconds until then."""
        return math.inf if self.at is None else self.at - asyncio.get_running_loop().time()

    def check(self) -> None:
        """RequestTimeoutError if it has passed."""
        if self.left <= 0:
            raise self._passed()

    async def bound(self, work: Awaitable[Result]) -> Result:
        """The result of `work`; RequestTimeoutError, and `work` cancelled, if it comes too late."""
        timeout = asyncio.timeout_at(self.at)
        try:
            async with timeout:
                return await work
        except TimeoutError:
            if not timeout.expired():
                raise  # the work's own
            raise self._passed() from None

    def _passed(self) -> RequestTimeoutError:
        waited = f", {self.waited:.1f} s of which it waited for weights" if self.waited else ""
        return RequestTimeoutError(
            f"the request took longer than {self.seconds:g} s (--request-timeout){waited}"
        )
