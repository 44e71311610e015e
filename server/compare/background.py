"""What a comparison asks of the engine: where a live request is refused, it comes again."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.compare.candidate import Voice, Voices
from server.compare.case import Case
from server.engine.async_engine import Stream
from server.engine.config import EngineConfig
from server.engine.request import Output, Request
from server.errors import QueueFullError, ServiceError, UnavailableError
from server.presets.served import Served

QUEUE_PAUSE = 0.2
"""Seconds until a full queue is tried again."""

VOICE_CODES = frozenset({"variant_cold", "variant_memory"})
"""Codes of `UnavailableError` that are about one voice's weights, not about the server."""


class Engine(Protocol):
    """What is needed of the engine."""

    @property
    def config(self) -> EngineConfig:
        """Its limits."""

    def submit(self, requests: Sequence[Request]) -> list[Stream]:
        """Queue requests."""


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """The engine and the voices, for work that has time."""

    engine: Engine
    voices: Voices

    async def voice(self, served: Served, case: Case) -> Voice:
        """A voice; weights that the prompt chooses take a place in the engine's queue."""
        while True:
            try:
                return await self.voices(served, case)
            except QueueFullError:
                await asyncio.sleep(QUEUE_PAUSE)

    async def outputs(self, request: Request) -> AsyncIterator[Output]:
        """The outputs of a request; it is cancelled when nobody listens any more."""
        while True:
            try:
                (stream,) = self.engine.submit([request])
                break
            except QueueFullError:
                await asyncio.sleep(QUEUE_PAUSE)
        try:
            async for output in stream:
                yield output
        finally:
            stream.cancel()


def ends_all(error: ServiceError) -> bool:
    """Whether nothing more can be asked of the server: it shuts down, or its engine has failed."""
    return isinstance(error, UnavailableError) and error.code not in VOICE_CODES
