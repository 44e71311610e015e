"""Has candidates answer prompts."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.compare.answer import Answer
from server.compare.background import Background, ends_all
from server.compare.candidate import Voice
from server.compare.case import Case
from server.compare.events import Piece
from server.compare.job import Job
from server.engine.request import Request
from server.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Answering:
    """Generates answers, and tells of every piece as it comes."""

    background: Background
    job: Job
    tell: Callable[[Piece], None]

    async def answer(self, case: Case, candidate: int) -> Answer:
        """A candidate's answer, or why it has none. Raises ServiceError if nobody gets one now."""
        try:
            answer = await self._generate(case, candidate)
        except ServiceError as error:  # such as a prompt that is impossible to every source
            if ends_all(error):
                raise
            answer = Answer(error=error.message)
        if answer.error is not None:
            self.tell(Piece(case.index, candidate, "", "error", answer.error))
        return answer

    async def _generate(self, case: Case, candidate: int) -> Answer:
        served = self.job.candidates[candidate].served
        started, first, text = time.monotonic(), None, ""
        voice = await self.background.voice(served, case)
        seed = (self.job.sampling.seed or 0) + case.index
        request = Request(
            members=voice.members,
            rule=voice.rule,
            draw_rule=voice.draw_rule,
            sampling=dataclasses.replace(
                self.job.sampling, seed=seed, eos_token_ids=served.eos_token_ids
            ),
            priority="background",
            label=served.preset or "",
            path=served.path,
            mode=served.mode,
        )
        tokens: list[int] = []
        async for output in self.background.outputs(request):
            if output.finish_reason == "error":
                return Answer(error=output.error or "the engine gave up", is_failure=True)
            first = first or time.monotonic()
            text += output.text
            tokens += [token.token_id for token in output.tokens]
            self.tell(Piece(case.index, candidate, output.text, output.finish_reason))
        return Answer(
            text=text,
            token_ids=tuple(tokens),
            finish_reason=output.finish_reason,
            seconds=time.monotonic() - started,
            seconds_to_first=(first or started) - started,
            num_rows=len(voice.members),
            kv_bytes=self._kv_bytes(voice, len(tokens)),
            weights=voice.weights,
        )

    def _kv_bytes(self, voice: Voice, num_tokens: int) -> int:
        """What an answer holds at its end. Blocks that several rows share are counted for each."""
        config = self.background.engine.config
        lengths = (len(member.prompt) + num_tokens for member in voice.members)
        return config.block_bytes * sum(-(-length // config.block_size) for length in lengths)
