"""Runs a comparison on the engine: answers first, then every text read by who is compared on it.

Everything runs in the background: live requests go first. With several prompts one candidate
answers after the other, so that its speed is its own; with one prompt all answer side by side.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from server.compare.answer import Answer
from server.compare.answering import Answering
from server.compare.at_once import at_once
from server.compare.background import Background, ends_all
from server.compare.candidate import Candidate, Probe, Voice
from server.compare.case import Case
from server.compare.events import Event, Phase, Progress
from server.compare.findings import Findings, Trouble
from server.compare.job import Job
from server.compare.reading import Reading
from server.compare.reading_plan import TextPlan, plan_texts, union
from server.compare.text_reader import TextReader
from server.engine.request import Member, Request, SamplingParams
from server.errors import ServiceError, UnprocessableError

NUM_READINGS = 2
"""Texts that are read at the same time: while one ends, the next one has begun."""


@dataclass(slots=True, eq=False)
class Run:
    """One comparison. Iterate over its `events`, then ask for `findings`.

    Leaving the iteration, or `cancel`, frees all that the engine holds for it.
    """

    background: Background
    job: Job
    _answers: list[list[Answer]] = field(init=False)
    _readings: list[dict[tuple[int, ...], Reading]] = field(init=False)
    _walls: list[float | None] = field(init=False)
    _errors: list[Trouble] = field(default_factory=list, init=False)
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
        """Without the reference there is nothing to hold anything against; where nobody named it,
        the first candidate that answered takes its place, the base before others.
        """
        terms, candidates = self.job.terms, self.job.candidates
        errors = [answers[terms.reference].error for answers in self._answers]
        if any(error is None for error in errors):
            return
        answered = [
            index
            for index in range(len(candidates))
            if terms.may_change and any(row[index].error is None for row in self._answers)
        ]
        if not answered:
            name = candidates[terms.reference].name
            raise UnprocessableError(
                f"the reference {name} answered none of {len(errors)} prompts: {errors[0]}",
                code="comparison_failed",
            )
        chosen = min(answered, key=lambda index: candidates[index].role != "base")
        self.job = replace(self.job, terms=replace(terms, reference=chosen))

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
        answering = Answering(self.background, self.job, self._events.put_nowait)
        answer = await answering.answer(self.job.cases[case], candidate)
        self._answers[case][candidate] = answer
        self._note("answers", len(self.job.cases) * len(self.job.candidates))

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
                voices[number] = await self.background.voice(served[number].served, case)
            except ServiceError as error:
                if ends_all(error):
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
            self._errors.append(Trouble(case.index, f"a text could not be read: {why}"))
            return
        reading = reader.reading()
        self._readings[case.index][text] = reading
        for voice, what in reading.errors.items():
            self._could_not_read(case, served[voice], what)

    async def _failure(self, request: Request) -> str | None:
        """Run a request that generates nothing; why it failed, if it did."""
        try:
            async for output in self.background.outputs(request):
                if output.finish_reason == "error":
                    return output.error or "the engine gave up"
        except ServiceError as error:
            if ends_all(error):
                raise
            return error.message
        return None

    def _could_not_read(self, case: Case, who: Candidate | Probe, why: str) -> None:
        self._errors.append(Trouble(case.index, f"{who.name} could not read a text: {why}"))

    def _note(self, phase: Phase, total: int, step: int = 1) -> None:
        self._done[phase] = self._done.get(phase, 0) + step
        self._events.put_nowait(Progress(phase, self._done[phase], total))
