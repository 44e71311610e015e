"""How well each of several sources predicts a prompt: one pass of it through each, side by side."""

from collections.abc import Sequence

from ensemble.source_weights import mean_log_likelihood
from server.api.deadline import Deadline
from server.api.prompts import EncodedPrompt
from server.api.scoring import Scoring
from server.engine.async_engine import AsyncEngine
from server.engine.reader import LogprobsReader
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
    scored = prompt.token_ids[1:]  # nothing predicts the first
    readers = {source.name: LogprobsReader(scored, num_top=0, rule=None) for source in sources}
    requests = [
        Request(
            (Member(prompt.token_ids, source.weights, source.name),),
            SamplingParams(max_tokens=0),
            reader=readers[source.name],
            num_read=len(scored),
            priority=priority,
            path="scoring",
        )
        for source in sources
    ]
    if scored:
        await Scoring(engine, requests, list(readers), deadline).run()
    return {name: _mean(reader) for name, reader in readers.items()}


def _mean(reader: LogprobsReader) -> float:
    known = (token.logprob for token in reader.tokens)
    return mean_log_likelihood([logprob for logprob in known if logprob is not None])
