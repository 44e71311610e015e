"""Runs a comparison on the engine: answers first, then every text read by who is compared on it.

Everything runs in the background: live requests go first. With several prompts one candidate
answers after the other, so that its speed is its own; with one prompt all answer side by side.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from server.compare.answer import Answer
from server.compare.at_once import at_once
from server.compare.candidate import Candidate, Probe, Voice, Voices
from server.compare.case import Case
from server.compare.events import Event, Phase, Piece, Progress
from server.compare.findings import Findings
from server.compare.job import Job
from server.compare.reading import Reading
from server.compare.reading_plan import TextPlan, plan_texts, union
from server.compare.text_reader import TextReader
from server.engine.async_engine import Stream
from server.engine.config import EngineConfig
from server.engine.request import Member, Output, Request, SamplingParams
from server.errors import QueueFullError, ServiceError, UnavailableError, UnprocessableError
from server.presets.served import Served

QUEUE_PAUSE = 0.2
"""Seconds until a full queue is tried again: a comparison waits where a live request is refused."""

VOICE_CODES = frozenset({"variant_cold", "variant_memory"})
"""Codes of `UnavailableError` that are about one voice's weights, not about the server."""

NUM_READINGS = 2
"""Texts that are read at the same time: while one ends, the next one has begun."""


class Engine(Protocol):
    """What is needed of the engine."""

    @property
    def config(self) -> EngineConfig:
        """Its limits."""

    def submit(self, requests: Sequence[Request]) -> list[Stream]:
        """Queue requests."""


@dataclass(slots=True, eq=False)
class Run:
    """One comparison. Iterate over its `events`, then ask for `findings`.

    Leaving the iteration, or `cancel`, frees all that the engine holds for it.
    """

    engine: Engine
    job: Job
    voices: Voices
    _answers: list[list[Answer]] = field(init=False)
    _readings: list[dict[tuple[int, ...], Reading]] = field(init=False)
    _walls: list[float | None] = field(init=False)
    _errors: list[str] = field(default_factory=list, init=False)
    _events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue, init=False)
    _done: dict[Phase, int] = field(default_factory=dict, init=False)
    _working: asyncio.Task[None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        num_cases, num_candidates = len(self.job.cases), len(self.job.candidates)
        self._answers = [[Answer()] * num_candidates for _ in range(num_cases)]
        self._readings = [{} for _ in range(num_cases)]
        self._walls = [None] * num_candidates

    async def events(self) -> AsyncGenerator[Event, None]:
        """Do the work, and tell of it. Raises ServiceError if the comparison cannot go on."""
        self._working = asyncio.ensure_future(self._work())
        try:
            while (event := await self._events.get()) is not None:
                yield event
            await self._working
        finally:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    def cancel(self) -> None:
        """Give up."""
        if self._working is not None:
            self._working.cancel()

    async def finish(self) -> Findings:
        """Run to the end without listening."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.findings()

    def findings(self) -> Findings:
        """All that was found; once the run has ended."""
        job = self.job
        return Findings(
            terms=job.terms,
            cases=job.cases,
            candidates=job.candidates,
            probes=job.probes,
            answers=self._answers,
            readings=self._readings,
            walls=self._walls,
            reading_errors=tuple(self._errors),
        )

    async def _work(self) -> None:
        try:
            await self._answer_all()
            self._check_reference()
            await self._read_all()
        finally:
            self._events.put_nowait(None)

    def _check_reference(self) -> None:
        """Without the reference there is nothing to hold anything against."""
        reference = self.job.terms.reference
        errors = [answers[reference].error for answers in self._answers]
        if all(error is not None for error in errors):
            name = self.job.candidates[reference].name
            raise UnprocessableError(
                f"the reference {name} answered none of {len(errors)} prompts: {errors[0]}",
                code="comparison_failed",
            )

    # Answers

    async def _answer_all(self) -> None:
        candidates = range(len(self.job.candidates))
        self._note("answers", len(self.job.cases) * len(candidates), 0)
        if len(self.job.cases) == 1:
            await at_once([partial(self._answer, 0, c) for c in candidates], len(candidates))
            return
        # The verdict is about these two: who answers first finds no prompt in the prefix cache.
        first = ("merge", "ensemble")
        for candidate in sorted(candidates, key=lambda c: self.job.candidates[c].role not in first):
            started = time.monotonic()
            work = [partial(self._answer, case.index, candidate) for case in self.job.cases]
            await at_once(work, self.job.terms.concurrency)
            self._walls[candidate] = time.monotonic() - started

    async def _answer(self, case: int, candidate: int) -> None:
        try:
            answer = await self._generate(self.job.cases[case], candidate)
        except ServiceError as error:  # such as a prompt that is impossible to every source
            if _ends_all(error):
                raise
            answer = Answer(error=error.message)
        self._answers[case][candidate] = answer
        if answer.error is not None:
            self._events.put_nowait(Piece(case, candidate, "", "error", answer.error))
        self._note("answers", len(self.job.cases) * len(self.job.candidates))

    async def _generate(self, case: Case, candidate: int) -> Answer:
        served = self.job.candidates[candidate].served
        started, first, text = time.monotonic(), None, ""
        voice = await self._voice(served, case)
        seed = (self.job.sampling.seed or 0) + case.index
        request = Request(
            members=voice.members,
            rule=voice.rule,
            draw_rule=voice.draw_rule,
            sampling=dataclasses.replace(self.job.sampling, seed=seed),
            priority="background",
            label=served.preset or "",
            path=served.path,
            mode=served.mode,
        )
        tokens: list[int] = []
        async for output in self._stream(request):
            if output.finish_reason == "error":
                return Answer(error=output.error or "the engine gave up")
            first = first or time.monotonic()
            text += output.text
            tokens += [token.token_id for token in output.tokens]
            self._events.put_nowait(Piece(case.index, candidate, output.text, output.finish_reason))
        return Answer(
            text=text,
            token_ids=tuple(tokens),
            finish_reason=output.finish_reason,
            seconds=time.monotonic() - started,
            seconds_to_first=(first or started) - started,
            num_rows=len(voice.members),
            kv_bytes=self._kv_bytes(voice, len(tokens)),
        )

    def _kv_bytes(self, voice: Voice, num_tokens: int) -> int:
        """What an answer holds at its end. Blocks that several rows share are counted for each."""
        config = self.engine.config
        lengths = (len(member.prompt) + num_tokens for member in voice.members)
        return config.block_bytes * sum(-(-length // config.block_size) for length in lengths)

    # Readings

    async def _read_all(self) -> None:
        job = self.job
        plans = [
            (case, text, plan)
            for case in job.cases
            for text, plan in plan_texts(
                job.terms.reference, case.reference_ids, self._answers[case.index], job.probes
            ).items()
        ]
        self._note("readings", len(plans), 0)

        async def read(case: Case, text: tuple[int, ...], plan: TextPlan) -> None:
            await self._read(case, text, plan)
            self._note("readings", len(plans))

        await at_once([partial(read, *item) for item in plans], NUM_READINGS)

    async def _read(self, case: Case, text: tuple[int, ...], plan: TextPlan) -> None:
        served: list[Candidate | Probe] = [*self.job.candidates, *self.job.probes]
        voices: dict[int, Voice] = {}
        for number in sorted(plan.voices):
            try:
                voices[number] = await self._voice(served[number].served, case)
            except ServiceError as error:
                if _ends_all(error):
                    raise
                self._could_not_read(case, served[number], error.message)
        if not voices:
            return
        members, listeners = union(voices)
        pairs = sorted(pair for pair in plan.pairs if voices.keys() >= set(pair))
        reader = TextReader(text, listeners, pairs, frozenset(plan.shown))
        request = Request(
            members=tuple(Member((*m.prompt, *text), m.weights, m.name) for m in members),
            sampling=SamplingParams(max_tokens=0),
            reader=reader,
            num_read=len(text),
            isolates_rows=True,
            priority="background",
            path="ensemble" if len(members) > 1 else "base",
        )
        if (why := await self._failure(request)) is not None:
            self._errors.append(f"prompt {case.index}: a text could not be read: {why}")
            return
        reading = reader.reading()
        self._readings[case.index][text] = reading
        for voice, what in reading.errors.items():
            self._could_not_read(case, served[voice], what)

    async def _failure(self, request: Request) -> str | None:
        """Run a request that generates nothing; why it failed, if it did."""
        try:
            async for output in self._stream(request):
                if output.finish_reason == "error":
                    return output.error or "the engine gave up"
        except ServiceError as error:
            if _ends_all(error):
                raise
            return error.message
        return None

    def _could_not_read(self, case: Case, who: Candidate | Probe, why: str) -> None:
        self._errors.append(f"prompt {case.index}: {who.name} could not read a text: {why}")

    # Both

    async def _voice(self, served: Served, case: Case) -> Voice:
        """A voice; weights that the prompt chooses take a place in the engine's queue."""
        while True:
            try:
                return await self.voices(served, case)
            except QueueFullError:
                await asyncio.sleep(QUEUE_PAUSE)

    async def _stream(self, request: Request) -> AsyncIterator[Output]:
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

    def _note(self, phase: Phase, total: int, step: int = 1) -> None:
        self._done[phase] = self._done.get(phase, 0) + step
        self._events.put_nowait(Progress(phase, self._done[phase], total))


def _ends_all(error: ServiceError) -> bool:
    """Whether nothing more can be asked of the server: it shuts down, or its engine has failed."""
    return isinstance(error, UnavailableError) and error.code not in VOICE_CODES
