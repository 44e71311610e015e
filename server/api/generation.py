"""The engine's streams of one HTTP request, read as one."""

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from server.api.deadline import Deadline
from server.api.errors import EngineFailedError
from server.api.fidelity import Fidelity
from server.api.groups import compile_rules, engine_members
from server.api.prompts import EncodedPrompt
from server.api.responses import EnsembleUsage, PromptTokensDetails, Usage
from server.api.service import Service
from server.engine.async_engine import Stream
from server.engine.request import (
    FinishReason,
    Output,
    Request,
    SamplingParams,
    TokenLogprobs,
)
from server.errors import InvalidRequestError
from server.presets.served import Overrides, Served

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChoiceOutput:
    """The next output of one choice. Choices are numbered prompt by prompt."""

    index: int
    output: Output


@dataclass(slots=True)
class ChoiceResult:
    """All outputs of one choice, put together."""

    text: str = ""
    tokens: list[TokenLogprobs] = field(default_factory=list)
    prompt: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None

    def add(self, output: Output) -> None:
        """Append the next output."""
        self.text += output.text
        self.tokens += output.tokens
        self.prompt = output.prompt or self.prompt
        self.finish_reason = output.finish_reason


class Generation:
    """What the engine makes of a request, output by output, and what it used."""

    def __init__(
        self,
        streams: Sequence[Stream],
        served: Served,
        prompts: Sequence[EncodedPrompt],
        deadline: Deadline,
    ) -> None:
        assert len(streams) % len(prompts) == 0
        self._streams = streams
        self._deadline = deadline
        self._arrived: asyncio.Queue[ChoiceOutput] = asyncio.Queue()
        self._pumps = [
            asyncio.ensure_future(self._pump(index, stream)) for index, stream in enumerate(streams)
        ]
        self._num_open = len(streams)
        self._served = served
        self._prompts = prompts
        self._cached = [0] * len(prompts)
        self._num_choices = len(streams) // len(prompts)
        self._num_generated = 0
        self._fidelity: Fidelity | None = None  # where the first choice's answer is offered to
        self._first_answer: list[int] = []

    @classmethod
    def submit(
        cls,
        service: Service,
        served: Served,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        num_choices: int,
        deadline: Deadline,
        overrides: Overrides | None = None,
    ) -> Self:
        """Queue every choice of every prompt, all or none."""
        deadline.check()
        requests = [
            request
            for prompt in prompts
            for request in _requests(served, prompt, sampling, num_choices)
        ]
        streams = service.engine.submit(requests)
        generation = cls(streams, served, prompts, deadline)
        if service.fidelity is not None and service.fidelity.wants(served, overrides):
            generation._fidelity = service.fidelity
        return generation

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChoiceOutput:
        """The next output of any choice, in the order in which they arrive."""
        if self._num_open == 0:
            raise StopAsyncIteration
        news = await self._deadline.bound(self._arrived.get())
        if news.output.finish_reason == "error":
            raise self._failed(news.output.error or "the engine gave up on the request")
        self._count(news)
        return news

    async def collect(self) -> list[ChoiceResult]:
        """Every choice, whole."""
        results = [ChoiceResult() for _ in self._streams]
        async for news in self:
            results[news.index].add(news.output)
        return results

    def cancel(self) -> None:
        """Free the rows by the engine's next step. Harmless after the end."""
        for pump, stream in zip(self._pumps, self._streams, strict=True):
            pump.cancel()
            stream.cancel()

    def usage(self) -> Usage:
        """The tokens used so far. A prompt counts once, whatever its number of choices and of
        members.
        """
        prompt_tokens = sum(len(prompt.token_ids) for prompt in self._prompts)
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self._num_generated,
            total_tokens=prompt_tokens + self._num_generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._cached)),
        )
        if self._served.combination is not None:
            usage.mergeserve = self._ensemble_usage()
        return usage

    def _ensemble_usage(self) -> EnsembleUsage:
        rows = [row for prompt in self._prompts for row in engine_members(self._served, prompt)]
        num_members = len(self._served.members)
        return EnsembleUsage(
            members=num_members,
            member_prompt_tokens=sum(len(row.prompt) for row in rows),
            member_forwards=num_members * self._num_generated,
        )

    async def _pump(self, index: int, stream: Stream) -> None:
        async for output in stream:
            self._arrived.put_nowait(ChoiceOutput(index, output))

    def _failed(self, error: str) -> EngineFailedError:
        """The error of a request that the engine gave up on, which the log tells too."""
        served = self._served
        known = "".join(f"; {warning}" for warning in served.warnings)
        logger.error("%s cannot answer: %s%s", served.label, error, known)
        if served.preset is None:
            return EngineFailedError(error)
        return EngineFailedError(
            f"{served.label}: {error}; GET /v1/presets/{served.preset}/explain?revision="
            f"{served.revision} says what it is made of and what is wrong with that"
        )

    def _count(self, news: ChoiceOutput) -> None:
        self._num_open -= news.output.finish_reason is not None
        self._num_generated += len(news.output.tokens)
        if self._fidelity is not None and news.index == 0:
            self._first_answer += [token.token_id for token in news.output.tokens]
            if news.output.finish_reason is not None:
                answer = tuple(self._first_answer)
                self._fidelity.offer(self._served, self._prompts[0], answer)
        if news.index % self._num_choices == 0:  # later choices find what the first one has read
            self._cached[news.index // self._num_choices] = news.output.num_cached_tokens


def _requests(
    served: Served, prompt: EncodedPrompt, sampling: SamplingParams, num_choices: int
) -> list[Request]:
    """The choices of one prompt: one seed, told apart by their number."""
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    seeded = dataclasses.replace(sampling, seed=seed, eos_token_ids=served.eos_token_ids)
    if sampling.prompt_logprobs is not None and prompt.own:
        raise InvalidRequestError(
            f"echo with logprobs: the member {next(iter(prompt.own))!r} reads a prompt of its own, "
            "so the ensemble predicts no other prompt",
            param="echo",
        )
    members = engine_members(served, prompt)
    rule, draw_rule = compile_rules(served, sampling.temperature)
    lenient_rule = None
    if rule is not None and rule.plausibility_alpha > 0 and sampling.min_tokens > 0:
        lenient_rule = dataclasses.replace(rule, plausibility_alpha=0.0)
    return [
        Request(
            members=members,
            sampling=seeded,
            choice=choice,
            rule=rule,
            draw_rule=draw_rule,
            lenient_rule=lenient_rule,
            label=served.preset or "",
            path=served.path,
            mode=served.mode,
        )
        for choice in range(num_choices)
    ]
