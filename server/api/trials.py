"""Tries sources and presets on plain text, behind what serves, and notes those that break it.

Nobody waits for it but who registers a source, and that not for long. Of a preset that is edited
again and again only the newest revision is tried.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from fastapi.concurrency import run_in_threadpool

from merging.adapter import Adapter
from merging.blend import Blend
from server.api.alignment import alignment, compared
from server.api.plain_text import MIN_TOKENS, PlainText
from server.api.trial_reader import TrialReader
from server.engine.async_engine import AsyncEngine
from server.engine.tokenizer import Tokenizer
from server.errors import QueueFullError, ServiceError, UnavailableError
from server.presets.catalog import Catalog
from server.presets.doubts import Trial
from server.presets.served import Served
from server.presets.tryouts import Candidate

logger = logging.getLogger(__name__)

REST = 4.0
"""Times as long as its trial took a preset is not tried again: edits may go on and on."""

COALESCE_SECONDS = 0.2
RECHECK_SECONDS = 20.0
"""Weights that were not in memory may be there now."""

POLL_SECONDS, REST_POLL_SECONDS, QUEUE_SECONDS = 0.02, 0.1, 0.5
PATIENCE = 20.0
"""Seconds that the answer to a registration waits for the source's trial."""

MAX_BASE_LOSS = 0.75
"""Of the logarithm of the vocabulary's size: a base that does worse knows no such text, and then it
tells nothing of others.
"""


class Trials:
    """All methods belong to the event loop's thread."""

    def __init__(self, engine: AsyncEngine, tokenizer: Tokenizer, catalog: Catalog) -> None:
        self._text = PlainText.of(engine, tokenizer)
        self._log_vocabulary = math.log(tokenizer.vocab_size)
        self._tryouts = catalog.tryouts
        self._given_up: set[tuple[str, ...]] = set()
        self._awaited: set[str] = set()
        self._rested_at: dict[str, float] = {}
        self._base: torch.Tensor | None = None  # its log-probabilities on the text
        self._base_loss = math.inf
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, once the engine runs."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._changed.set)

        self._tryouts.on_change(wake)
        self._task = asyncio.ensure_future(self._run())

    def close(self) -> None:
        """Try nothing more."""
        self._tryouts.on_change(lambda: None)
        if self._task is not None:
            self._task.cancel()

    async def settled(self, source: str) -> None:
        """Wait until a source was tried, if it is to be, for at most PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        self._awaited.add(source)
        while time.monotonic() < deadline and self._task is not None and not self._task.done():
            if not any(c.served.model == source for c in self._open(self._tryouts.sources())):
                break
            await asyncio.sleep(POLL_SECONDS)
        self._awaited.discard(source)

    async def _run(self) -> None:
        try:
            if not await self._knows_text():
                logger.info("the base knows no plain text: sources and presets are not tried on it")
                return
            while True:
                await self._try_all()
                await self._wait(RECHECK_SECONDS)
                await asyncio.sleep(COALESCE_SECONDS)
        except UnavailableError as error:  # the server shuts down, or its engine has failed
            logger.debug("trials end: %s", error.message)
        except Exception:
            logger.exception("nothing more is tried on plain text")

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        self._changed.clear()

    async def _knows_text(self) -> bool:
        """Read the text with the base alone."""
        if self._text.num_read < MIN_TOKENS:
            return False
        read = await self._text.read_base(self._text.voice(self._tryouts.base()))
        self._base, self._base_loss = read.log_probs, read.loss
        return self._base_loss < MAX_BASE_LOSS * self._log_vocabulary

    async def _try_all(self) -> None:
        """Sources first: what is known of them decides what is said of presets."""
        while True:
            sources = self._open(self._tryouts.sources())
            presets = [] if sources else self._open(await run_in_threadpool(self._tryouts.presets))
            ready = sorted(sources, key=self._order) or [p for p in presets if self._is_rested(p)]
            if ready:
                began = time.monotonic()
                await self._try(ready[0])
                now = time.monotonic()
                self._rested_at[ready[0].served.model] = now + REST * (now - began)
            elif presets:
                await asyncio.sleep(REST_POLL_SECONDS)
            else:
                return

    def _is_rested(self, preset: Candidate) -> bool:
        return self._rested_at.get(preset.served.model, 0.0) <= time.monotonic()

    def _order(self, source: Candidate) -> tuple[bool, bool]:
        """Sources for which somebody waits, then those that do not record this base."""
        content = source.content
        is_proven = isinstance(content, Adapter) and content.base_digest is not None
        return source.served.model not in self._awaited, is_proven

    def _open(self, candidates: list[Candidate]) -> list[Candidate]:
        return [c for c in candidates if c.keys not in self._given_up]

    async def _try(self, candidate: Candidate) -> None:
        try:
            trial = await self._trial(candidate)
        except QueueFullError:  # others fill the queue: try again
            await asyncio.sleep(QUEUE_SECONDS)
            return
        except UnavailableError:
            raise
        except ServiceError as error:  # say, more rows than there are
            logger.info("%s was not tried: %s", candidate.served.label, error.message)
            self._given_up.add(candidate.keys)
            return
        await run_in_threadpool(self._tryouts.note, candidate, trial)

    async def _trial(self, candidate: Candidate) -> Trial:
        read = await self._read([candidate.served], self._text)
        trial = Trial(self._text.num_read, read.losses[0], self._base_loss)
        content, divergence = candidate.content, read.divergences[0]
        if not isinstance(content, Adapter) or content.base_digest is not None:
            return trial  # an adapter that records its base was held against it
        if not 0 < divergence < math.inf:
            return trial
        blends = await run_in_threadpool(compared, content, self._tryouts.merging_base, divergence)
        found: list[float] = []
        for some in _batched(blends, self._text.max_rows):
            served = [self._tryouts.blend(blend) for blend in some]
            found += (await self._read(served, self._text.beginning)).divergences
        return replace(trial, alignment=alignment(found))

    async def _read(self, served: list[Served], text: PlainText) -> TrialReader:
        assert self._base is not None, "the base reads first"
        return await text.read([text.voice(s) for s in served], self._base)


def _batched(blends: Sequence[Blend], size: int) -> Iterator[Sequence[Blend]]:
    """Some at a time."""
    for begin in range(0, len(blends), size):
        yield blends[begin : begin + size]
