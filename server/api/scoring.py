"""Runs many requests of the engine as one: some at a time, so that others find rows too."""

import asyncio
from collections.abc import Iterator, Sequence

from server.api.deadline import Deadline
from server.api.errors import EngineFailedError
from server.engine.async_engine import AsyncEngine
from server.engine.request import Request
from server.errors import QueueFullError

RETRY_SECONDS = 0.05
"""Between two tries to queue a request, once some of them have run."""


class Scoring:
    """Requests that generate nothing: their readers have what they are for.

    `names` are what errors call them. At most half of the rows are in use at a time.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        requests: Sequence[Request],
        names: Sequence[str],
        deadline: Deadline,
    ) -> None:
        self.num_cached_tokens = 0
        self._engine = engine
        self._deadline = deadline
        self._requests = list(zip(requests, names, strict=True))
        self._has_begun = False

    async def run(self) -> None:
        """Run all, or fail with the first that fails. Cancelling frees their rows."""
        num_rows = max(len(request.members) for request, _ in self._requests)
        num_together = max(1, self._engine.config.max_rows // 2 // num_rows)
        left = iter(self._requests)
        workers = [
            asyncio.ensure_future(self._work(left))
            for _ in range(min(num_together, len(self._requests)))
        ]
        try:
            await self._deadline.bound(asyncio.gather(*workers))
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, left: Iterator[tuple[Request, str]]) -> None:
        for request, name in left:
            await self._run_one(request, name)

    async def _run_one(self, request: Request, name: str) -> None:
        while True:
            try:
                (stream,) = self._engine.submit([request])
                break
            except QueueFullError:  # others fill the queue
                if not self._has_begun:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
        self._has_begun = True
        try:
            async for output in stream:
                if output.finish_reason == "error":
                    raise EngineFailedError(f"{name}: {output.error}")
                self.num_cached_tokens += output.num_cached_tokens
        finally:
            stream.cancel()
