"""Live fidelity: how far a preset's two modes are apart on what callers really ask.

A sampled share of the answers is scored by both modes, afterwards and in the background. No request
waits for that: what there is no room for is dropped, and counted.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

import torch
from fastapi.concurrency import run_in_threadpool

from ensemble.divergence import divergences
from server.api.groups import compile_rules, engine_members
from server.api.prompts import EncodedPrompt
from server.compare.candidate import Voice
from server.compare.reading_plan import union
from server.compare.text_reader import Listener
from server.engine.async_engine import AsyncEngine
from server.engine.request import Member, Request, SamplingParams
from server.errors import InvalidRequestError, QueueFullError, ServiceError, UnavailableError
from server.presets.catalog import Catalog
from server.presets.served import Overrides, Served

logger = logging.getLogger(__name__)

MAX_PENDING = 8
"""Answers that wait to be scored or are; further ones are dropped."""


class FidelityObserver(Protocol):
    """Told of every answer that was sampled; must not block."""

    def fidelity(self, preset: str, *, agreement: float, overlap: float, divergence: float) -> None:
        """An answer was scored: the share of its tokens at which both modes have the same most
        likely one, the mean overlap of their distributions (1 minus the total variation), and their
        mean Jensen-Shannon divergence in nats.
        """

    def fidelity_dropped(self, reason: str) -> None:
        """An answer was not scored."""


class AgreementReader:
    """Reads an answer under two modes, and adds up how far they are apart."""

    def __init__(self, one: Listener, other: Listener) -> None:
        self._one, self._other = one, other
        self._sums = torch.zeros(3, dtype=torch.float64)  # same top, overlap, divergence
        self._count = 0

    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        """Float32 [rows, positions, vocab]."""
        one, other = (m.logits(logits).log_softmax(dim=-1) for m in (self._one, self._other))
        found = divergences(one, other, top_k=1)
        columns = (found.same_top, 1 - found.total_variation, found.js)
        self._sums += torch.stack([column.double().sum().cpu() for column in columns])
        self._count += logits.shape[1]

    @property
    def means(self) -> tuple[float, float, float]:
        """Agreement, overlap and divergence over the positions."""
        agreement, overlap, divergence = (self._sums / self._count).tolist()
        return agreement, overlap, divergence


class Fidelity:
    """Samples answers of presets. All methods belong to the event loop's thread.

    `share` of the answers are sampled; `draw` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        catalog: Catalog,
        observer: FidelityObserver,
        share: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._engine, self._catalog, self._observer = engine, catalog, observer
        self._share, self._draw = share, draw
        self._pending: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def wants(self, served: Served, overrides: Overrides | None) -> bool:
        """Whether a request's answer shall be offered: one of a preset as it is, in either mode."""
        is_plain = overrides is None or overrides == Overrides(mode=overrides.mode)
        return served.preset is not None and is_plain and self._draw() < self._share

    def offer(self, served: Served, prompt: EncodedPrompt, answer: tuple[int, ...]) -> None:
        """Score an answer's tokens when there is time, or drop it."""
        reason = self._drop_reason(answer)
        if reason is not None:
            self._observer.fidelity_dropped(reason)
            return
        task = asyncio.ensure_future(self._score(served, prompt, answer))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def close(self) -> None:
        """Give up what is pending, and take nothing more."""
        self._is_closed = True
        for task in self._pending:
            task.cancel()

    def _drop_reason(self, answer: tuple[int, ...]) -> str | None:
        num_live = self._engine.num_open - self._engine.num_background
        if self._is_closed:
            return "closed"
        if not answer:
            return "empty"
        if num_live > self._engine.config.max_rows:
            return "busy"
        return "queue_full" if len(self._pending) >= MAX_PENDING else None

    async def _score(self, served: Served, prompt: EncodedPrompt, answer: tuple[int, ...]) -> None:
        try:
            reason = await self._try(served, prompt, answer)
        except Exception:  # the answer itself was right, and has been sent
            logger.exception("%s was not scored by its other mode", served.label)
            reason = "failed"
        if reason is not None:
            self._observer.fidelity_dropped(reason)

    async def _try(
        self, served: Served, prompt: EncodedPrompt, answer: tuple[int, ...]
    ) -> str | None:
        """Have one group of both modes' rows read the answer; the reason if that cannot be."""
        try:  # on a thread: the other mode may have to be planned
            other = await run_in_threadpool(self._catalog.other_mode, served)
        except ServiceError:  # say, an ensemble that cannot be made of this recipe
            return "no_other_mode"
        if other is None:
            return "not_at_hand"
        if any(m.system is not None or m.prompt is not None for m in other.members):
            return "own_prompts"
        request, reader = _request(served, other, prompt, answer)
        try:
            (stream,) = self._engine.submit([request])
        except InvalidRequestError:
            return "too_large"
        except (QueueFullError, UnavailableError):
            return "queue_full"
        try:
            async for output in stream:
                if output.finish_reason == "error":
                    return "failed"
        finally:
            stream.cancel()
        agreement, overlap, divergence = reader.means
        self._observer.fidelity(
            served.preset or "", agreement=agreement, overlap=overlap, divergence=divergence
        )
        return None


def _request(
    served: Served, other: Served, prompt: EncodedPrompt, answer: tuple[int, ...]
) -> tuple[Request, AgreementReader]:
    """One group with the rows of both modes; those that both have are computed once."""
    modes = {
        index: Voice(engine_members(mode, prompt), compile_rules(mode, temperature=1.0)[0])
        for index, mode in enumerate((served, other))
    }
    members, listeners = union(modes)
    reader = AgreementReader(listeners[0], listeners[1])
    request = Request(
        members=tuple(Member((*m.prompt, *answer), m.weights, m.name) for m in members),
        sampling=SamplingParams(max_tokens=0),
        reader=reader,
        num_read=len(answer),
        priority="background",
        label=served.preset or "",
        path=served.path,
        mode=served.mode,
    )
    return request, reader
