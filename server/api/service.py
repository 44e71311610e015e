"""What the routes stand on: a loaded model, its tokenizer and the catalog."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi.concurrency import run_in_threadpool

from ensemble.errors import StatisticsError
from server.api.deadline import Deadline
from server.api.fidelity import Fidelity
from server.api.prompts import EncodedPrompt
from server.api.source_scores import score_sources
from server.api.trials import Trials
from server.engine.async_engine import AsyncEngine
from server.engine.request import Priority
from server.engine.tokenizer import Tokenizer
from server.errors import InvalidRequestError
from server.presets.catalog import Catalog
from server.presets.sampling_defaults import SamplingDefaults
from server.presets.served import Overrides, Served
from server.presets.weighing import Weighing

NUM_EDITS = 32
"""Edits that are worked on at the same time; more wait."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Awaited = TypeVar("Awaited")


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A loaded model and all that goes with it. `close` is called once the engine has stopped.

    `defaults` are the server's, for requests and presets that say nothing.
    """

    engine: AsyncEngine
    tokenizer: Tokenizer
    catalog: Catalog
    request_timeout: float | None = None
    close: Callable[[], None] = lambda: None
    fidelity: Fidelity | None = None
    trials: Trials | None = None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    _edits: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(NUM_EDITS))

    @property
    def max_model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.engine.config.max_model_len

    def defaults_of(self, served: Served) -> SamplingDefaults:
        """The sampling defaults of a request: the preset's, else the server's."""
        return served.defaults.over(self.defaults)

    def deadline(self) -> Deadline:
        """The deadline of a request that begins now."""
        return Deadline.after(self.request_timeout)

    async def edit(
        self,
        work: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Result:
        """Run an edit on a thread. Edits may wait for builds, so they have threads of their own:
        reading never waits for one that is free.
        """
        call = partial(work, *arguments, **options)
        return await to_thread.run_sync(call, limiter=self._edits)

    async def resolve(
        self, model: str, overrides: Overrides | None, deadline: Deadline | None = None
    ) -> Served:
        """Pin a request to what its `model` means now."""
        begin = self.catalog.begin
        if overrides is None and "@" not in model:
            future = begin(model)
        else:  # Older revisions are read from the database, and overrides compile a plan of their
            # own: not on the thread that serves everybody's streams.
            future = await run_in_threadpool(begin, model, overrides)
        return await self._wait(future, model, deadline or Deadline())

    async def weighing(
        self, model: str, overrides: Overrides, deadline: Deadline | None = None
    ) -> Weighing:
        """The sources among which a request's prompt is to choose."""
        begin = self.catalog.begin_weighing
        future = await run_in_threadpool(begin, model, overrides)
        return await self._wait(future, model, deadline or Deadline())

    async def resolve_for(
        self,
        model: str,
        overrides: Overrides,
        prompt: EncodedPrompt,
        deadline: Deadline,
        priority: Priority = "live",
    ) -> Served:
        """The same with weights that are chosen by the prompt: its likelihood under each source."""
        weighing = await self.weighing(model, overrides, deadline)
        scores = await score_sources(self.engine, weighing.sources, prompt, deadline, priority)
        try:
            weights = weighing.weights(scores)
        except StatisticsError as error:
            raise InvalidRequestError(
                f"mergeserve.weights: {error}", param="mergeserve.weights"
            ) from error
        future = await run_in_threadpool(weighing.finish, weights)
        return await self._wait(future, model, deadline)

    async def _wait(self, future: Future[Awaited], model: str, deadline: Deadline) -> Awaited:
        """The weights, waited for no longer than patience and deadline allow."""
        if future.done():
            return future.result()
        began, left = asyncio.get_running_loop().time(), deadline.left
        timeout = asyncio.timeout(min(self.catalog.patience, left))
        try:
            async with timeout:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not timeout.expired():
                raise  # the build's own
            limit = deadline.seconds if left < self.catalog.patience else None
            raise self.catalog.out_of_patience(model, limit) from None
        finally:
            deadline.waited += asyncio.get_running_loop().time() - began
