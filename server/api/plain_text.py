"""Plain text on which weights are tried, and how several of them read it at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from server.api.deadline import Deadline
from server.api.groups import compile_rules, engine_members
from server.api.prompts import EncodedPrompt
from server.api.scoring import Scoring
from server.api.trial_reader import BaseReader, TrialReader
from server.compare.candidate import Voice
from server.compare.reading_plan import union
from server.engine.async_engine import AsyncEngine
from server.engine.request import Member, Reader, Request, SamplingParams
from server.engine.tokenizer import Tokenizer
from server.presets.served import Served

NUM_TOKENS = 64
"""At most so many are read."""

NUM_COMPARED = 40
"""Of these, where distances are all that is asked."""

MIN_TOKENS = 16
"""Fewer say nothing."""

TEXT = """The river rises in the hills to the north of the town and flows south for about forty \
miles before it reaches the sea. In spring, when the snow melts, it often floods the meadows along \
its banks, and the farmers move their cattle to higher ground.

Water boils at a lower temperature on a mountain than it does at sea level, because the air \
pressure is lower. That is why it takes longer to cook rice or potatoes high up, even though the \
water seems to boil just as well.

She opened the door, put her bag on the table and looked out of the window. It had started to rain \
again. "I think we should stay at home today," she said, "and go to the market tomorrow instead."

A computer program is a list of instructions. The computer follows them one after another, very \
quickly and without asking what they are for."""


@dataclass(frozen=True, slots=True, eq=False)
class PlainText:
    """The text in the base's tokens, and the engine that reads it, in the background."""

    engine: AsyncEngine
    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, engine: AsyncEngine, tokenizer: Tokenizer) -> "PlainText":
        """As many tokens as the model takes."""
        limit = min(NUM_TOKENS, engine.config.max_model_len)
        return cls(engine, tuple(tokenizer.encode(TEXT)[:limit]))

    @property
    def num_read(self) -> int:
        """Tokens that are predicted."""
        return len(self.token_ids) - 1

    @property
    def max_rows(self) -> int:
        """Rows that may read it together, so that others find some too."""
        return max(1, self.engine.config.max_rows // 2)

    @property
    def beginning(self) -> "PlainText":
        """Its first tokens."""
        return PlainText(self.engine, self.token_ids[:NUM_COMPARED])

    def voice(self, served: Served) -> Voice:
        """Something that is served, as it reads the text. Members' own prompts are left out."""
        prompt = EncodedPrompt(self.token_ids)
        return Voice(engine_members(served, prompt), compile_rules(served, temperature=1.0)[0])

    async def read_base(self, base: Voice) -> BaseReader:
        """Read it with the base."""
        reader = BaseReader(self.token_ids[1:])
        await self._run(base.members, reader)
        return reader

    async def read(self, voices: Sequence[Voice], base: torch.Tensor) -> TrialReader:
        """Read it with all voices. `base`: its log-probabilities, of as much at least."""
        members, listeners = union(dict(enumerate(voices)))
        reader = TrialReader(self.token_ids[1:], base, listeners)
        await self._run(members, reader)
        return reader

    async def _run(self, members: tuple[Member, ...], reader: Reader) -> None:
        request = Request(
            members=members,
            sampling=SamplingParams(max_tokens=0),
            reader=reader,
            num_read=self.num_read,
            isolates_rows=True,
            priority="background",
            path="trial",
        )
        await Scoring(self.engine, [request], ["a trial on plain text"], Deadline()).run()
