"""How long a request may take: all that it waits for, one after the other, shares one deadline."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Self, TypeVar

from server.api.errors import RequestTimeoutError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment, in the event loop's time, at which a request has taken too long: `seconds` after
    it began. None: never.
    """

    seconds: float | None = None
    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Self:
        """The deadline of a request that begins now. On the event loop's thread."""
        at = None if seconds is None else asyncio.get_running_loop().time() + seconds
        return cls(seconds, at)

    async def bound(self, work: Awaitable[Result]) -> Result:
        """The result of `work`; RequestTimeoutError, and `work` cancelled, if it comes too late."""
        try:
            async with asyncio.timeout_at(self.at):
                return await work
        except TimeoutError:
            raise RequestTimeoutError(
                f"the request took longer than {self.seconds:g} s (--request-timeout)"
            ) from None
