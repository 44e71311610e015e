"""From a running generation to its response: one JSON object, or a stream of events."""

import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol
from urllib.parse import quote

from fastapi import Request, Response

from server.api.disconnect import unless_disconnected
from server.api.errors import error_body, internal_error
from server.api.generation import ChoiceOutput, ChoiceResult, Generation
from server.api.responses import Answer, Envelope, json_response
from server.api.sse import DONE, EventStream, frame
from server.errors import ServiceError
from server.presets.served import Served

logger = logging.getLogger(__name__)

PRESET_HEADER = "X-Mergeserve-Preset"


class View(Protocol):
    """How a route shows what the engine generates."""

    envelope: Envelope

    def whole(self, results: Sequence[ChoiceResult]) -> Answer:
        """The answer that is not streamed."""

    def chunks(self, news: ChoiceOutput) -> list[Answer]:
        """The chunks that tell of one output."""

    def empty_chunk(self) -> Answer:
        """A chunk without choices, for the usage."""


def preset_headers(served: Served) -> dict[str, str]:
    """The header that names what a request was pinned to, in ASCII whatever the base is called."""
    return {PRESET_HEADER: quote(served.label, safe="@/:+ ")}


def note_served(request: Request, served: Served) -> None:
    """Tell the log of an ensemble, which the preset's name does not."""
    request.state.mode = "ensemble" if served.mode == "ensemble" else None


async def answer(request: Request, generation: Generation, view: View) -> Response:
    """The whole answer. A client that goes away ends its generation."""
    try:
        results = await unless_disconnected(request.receive, generation.collect())
    finally:
        generation.cancel()
    note_served(request, view.envelope.served)
    whole = view.whole(results)
    whole.usage = generation.usage()
    whole.mergeserve = view.envelope.provenance
    return json_response(whole, preset_headers(view.envelope.served))


async def answer_stream(
    request: Request, generation: Generation, view: View, *, include_usage: bool
) -> Response:
    """A stream of chunks. What fails before the first token is raised, and has its own status."""
    try:
        first = await unless_disconnected(request.receive, generation.__anext__())
    except BaseException:
        generation.cancel()
        raise
    note_served(request, view.envelope.served)
    frames = _frames(first, generation, view, include_usage)
    return EventStream(frames, generation.cancel, preset_headers(view.envelope.served))


async def _frames(
    first: ChoiceOutput, generation: Generation, view: View, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    try:
        for chunk in _chunks(first, view, include_usage, is_first=True):
            yield frame(chunk)
        async for news in generation:
            for chunk in _chunks(news, view, include_usage):
                yield frame(chunk)
        if include_usage:
            last = view.empty_chunk()
            last.usage = generation.usage()
            last.mergeserve = view.envelope.provenance
            yield frame(last)
    except ServiceError as error:
        yield frame(error_body(error))
    except Exception:
        logger.exception("a stream failed")
        yield frame(error_body(internal_error()))
    yield DONE


def _chunks(
    news: ChoiceOutput, view: View, include_usage: bool, *, is_first: bool = False
) -> list[Answer]:
    """The chunks of one output; the first of a stream and the last of a choice say what made it."""
    chunks = view.chunks(news)
    if is_first:
        chunks[0].mergeserve = view.envelope.provenance
    if news.output.finish_reason is not None:
        chunks[-1].mergeserve = view.envelope.provenance
    if include_usage:
        for chunk in chunks:
            chunk.usage = None
    return chunks
