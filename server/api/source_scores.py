"""How well each of several sources predicts a prompt: one pass of it through each, side by side."""

import asyncio
from collections.abc import Sequence

from ensemble.source_weights import mean_log_likelihood
from server.api.deadline import Deadline
from server.api.errors import EngineFailedError
from server.api.prompts import EncodedPrompt
from server.engine.async_engine import AsyncEngine, Stream
from server.engine.request import Member, Priority, Request, SamplingParams
from server.presets.served import ServedMember


async def score_sources(
    engine: AsyncEngine,
    sources: Sequence[ServedMember],
    prompt: EncodedPrompt,
    deadline: Deadline,
    priority: Priority = "live",
) -> dict[str, float]:
    """The mean log-likelihood of the prompt's tokens under each source, in nats per token.

    What was computed stays in the prefix cache: the rows of an ensemble find it there, and so
    does the source that a prompt is routed to.
    """
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    requests = [
        Request(
            (Member(prompt.token_ids, source.weights, source.name),),
            sampling,
            priority=priority,
            path="scoring",
        )
        for source in sources
    ]
    streams = engine.submit(requests)
    try:
        scores = await deadline.bound(asyncio.gather(*map(_score, streams)))
    finally:
        for stream in streams:
            stream.cancel()
    return {source.name: score for source, score in zip(sources, scores, strict=True)}


async def _score(stream: Stream) -> float:
    log_probs: list[float] = []
    async for output in stream:
        if output.error is not None:
            raise EngineFailedError(output.error)
        prompt = output.prompt or ()
        log_probs += [token.logprob for token in prompt if token.logprob is not None]
    return mean_log_likelihood(log_probs)
