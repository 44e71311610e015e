"""Much to do, some of it at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence


async def at_once(work: Sequence[Callable[[], Awaitable[None]]], limit: int) -> None:
    """Do all of it, at most `limit` at the same time. The first error ends the rest, and is
    raised.
    """
    waiting = iter(work)

    async def worker() -> None:
        for item in waiting:
            await item()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(limit, len(work))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
