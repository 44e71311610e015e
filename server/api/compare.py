"""`POST /v1/compare`: any number of candidates against one reference. From here follow `Run`."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool

from server.api.body import json_body
from server.api.compare_candidates import Lineup, line_up
from server.api.compare_cases import Inputs, make_cases
from server.api.compare_probes import explain
from server.api.compare_recipes import identify
from server.api.compare_room import check_room, check_size
from server.api.compare_schemas import CompareBody
from server.api.compare_view import CompareView
from server.api.compare_voices import VoiceMaker
from server.api.disconnect import unless_disconnected
from server.api.errors import error_body, internal_error
from server.api.lifecycle import ServiceDep
from server.api.service import Service
from server.api.sse import DONE, EventStream, event, frame
from server.compare.about import About
from server.compare.background import Background
from server.compare.events import Event, Piece
from server.compare.findings import Terms
from server.compare.job import Job
from server.compare.reporting import find_subject, make_report
from server.compare.run import Run
from server.errors import ServiceError

logger = logging.getLogger(__name__)

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison that is ready to run."""

    run: Run
    view: CompareView
    lineup: Lineup
    body: CompareBody
    service: Service
    about: About

    def result(self, *, streamed: bool) -> bytes:
        """Count what the run has found, and show it; takes a second, so not on the event loop."""
        findings = self.run.findings()
        report = make_report(
            findings,
            self.service.tokenizer.token_text,
            positions=self.body.positions,
            notes=self.lineup.notes,
            about=self.about,
        )
        return self.view.result(report, findings, html=self.body.html, streamed=streamed)


@router.post("/v1/compare")
async def compare(
    request: Request,
    service: ServiceDep,
    body: Annotated[CompareBody, Depends(json_body(CompareBody))],
) -> Response:
    """Compare candidates on prompts. A client that goes away ends the comparison."""
    comparison = await prepare(service, body)
    if body.stream:
        return await _stream(request, comparison)
    await unless_disconnected(request.receive, comparison.run.finish())
    content = await run_in_threadpool(comparison.result, streamed=False)
    return Response(content, media_type="application/json")


async def prepare(service: Service, body: CompareBody) -> Comparison:
    """Everything that can be wrong with a comparison is found here, before anything runs."""
    inputs = Inputs(body.prompts, body.messages, service.tokenizer)
    lineup = await line_up(service, body)
    if body.messages is not None:
        lineup.notes += _other_templates(service, lineup)
    check_size(body, len(lineup.candidates))
    cases = await make_cases(body, inputs)
    terms = Terms(
        reference=lineup.reference,
        margin=body.margin,
        level=body.level,
        seed=max(body.seed or 0, 0),  # -1 is none
        concurrency=body.concurrency,
        max_tokens=body.max_tokens,
        may_change=body.reference is None,
    )
    created = int(time.time())
    about = await identify(service, lineup, body, created)
    await explain(service, lineup, find_subject(lineup.candidates, lineup.reference), body)
    voices = VoiceMaker(service, inputs, body.temperature or 0.0, lineup.by_prompt)
    sampling = await check_room(service, body, lineup, cases, inputs)
    job = Job(terms, cases, lineup.candidates, lineup.probes, sampling)
    model = body.model or lineup.candidates[lineup.reference].served.model
    view = CompareView(lineup.candidates, model, is_chat=body.messages is not None, created=created)
    run = Run(Background(service.engine, voices), job)
    return Comparison(run, view, lineup, body, service, about)


def _other_templates(service: Service, lineup: Lineup) -> list[str]:
    """Who is asked in another way than by itself: all read the same prompts."""
    base = service.tokenizer.conversation.template
    own = [(c.name, c.served.conversation) for c in lineup.candidates]
    return [
        f"{name} has a chat template of its own, and reads these conversations in the base's, as "
        "all do: send prompts to compare it in its own way"
        for name, conversation in own
        if conversation is not None and conversation.template != base
    ]


async def _stream(request: Request, comparison: Comparison) -> Response:
    """A stream of chunks. What fails before the first piece of text is raised, and has its own
    status.
    """
    events = comparison.run.events()
    begun: list[Event] = []

    async def begin() -> None:
        while not (begun and isinstance(begun[-1], Piece)):
            begun.append(await anext(events))

    try:
        await unless_disconnected(request.receive, begin())
    except BaseException:
        comparison.run.cancel()
        raise
    return EventStream(_frames(begun, events, comparison), comparison.run.cancel, {})


async def _frames(
    begun: list[Event], events: AsyncGenerator[Event, None], comparison: Comparison
) -> AsyncGenerator[bytes, None]:
    view = comparison.view
    try:
        for news in begun:
            yield frame(view.chunk(news))
        async with aclosing(events):
            async for news in events:
                yield frame(view.chunk(news))
        yield event(await run_in_threadpool(comparison.result, streamed=True))
    except ServiceError as error:
        yield frame(error_body(error))
    except Exception:
        logger.exception("a comparison failed")
        yield frame(error_body(internal_error()))
    yield DONE
