"""`POST /v1/loglikelihood`: how likely given texts are under a model."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from server.api.answering import preset_headers
from server.api.body import json_body
from server.api.disconnect import unless_disconnected
from server.api.given_texts import GivenText, TextEncoder, check_lengths
from server.api.groups import compile_rules, engine_members
from server.api.lifecycle import ServiceDep
from server.api.loglikelihood_body import LoglikelihoodBody
from server.api.logprobs import finite
from server.api.prompts import EncodedPrompt, own_prompts
from server.api.responses import (
    EnsembleUsage,
    PromptTokensDetails,
    Provenance,
    Usage,
    json_response,
    provenance,
)
from server.api.scoring import Scoring
from server.engine import request as engine
from server.engine.reader import LogprobsReader
from server.engine.request import SamplingParams, TokenLogprobs
from server.engine.tokenizer import Tokenizer
from server.errors import InvalidRequestError
from server.presets.served import Served

MAX_DUMPED = 2_000_000
"""Log-probabilities of alternatives in one answer."""

router = APIRouter()


class Score(BaseModel):
    """One text. Lists have one entry for each token shown; null where nothing predicts it.

    `sum`, `mean` and `perplexity` are over the `num_tokens` tokens that have a log-probability.
    """

    index: int
    tokens: list[str]
    token_ids: list[int]
    logprobs: list[float | None]
    top_token_ids: list[list[int] | None] | None = None
    top_logprobs: list[list[float] | None] | None = None
    num_tokens: int
    sum: float
    mean: float
    perplexity: float | None
    is_greedy: bool


class Scores(BaseModel):
    """The answer, in the order of the request."""

    object: Literal["list"]
    model: str
    data: list[Score]
    usage: Usage
    mergeserve: Provenance


@router.post("/v1/loglikelihood")
async def loglikelihood(
    request: Request,
    service: ServiceDep,
    body: Annotated[LoglikelihoodBody, Depends(json_body(LoglikelihoodBody))],
) -> Response:
    """Score texts, or completions after their prompts."""
    deadline = service.deadline()
    served = await service.resolve(body.model, body.overrides, deadline)
    given = await run_in_threadpool(_encode, body, served, service.tokenizer)
    check_lengths(given, service.max_model_len)
    num_top = body.top_logprobs or 0
    _check_size(sum(text.num_read for text in given), num_top)
    rule, _ = compile_rules(served, temperature=1.0)
    readers = [LogprobsReader(text.scored, num_top, rule) for text in given]
    requests = [
        _request(body, served, text, reader) for text, reader in zip(given, readers, strict=True)
    ]
    scoring = Scoring(service.engine, requests, [text.name for text in given], deadline)
    await unless_disconnected(request.receive, scoring.run())

    def answer() -> Response:
        show = _Shown(service.tokenizer, with_first=body.texts is not None, num_top=num_top)
        scores = Scores(
            object="list",
            model=served.model,
            data=[show.score(i, *pair) for i, pair in enumerate(zip(given, readers, strict=True))],
            usage=_usage(served, requests, given, scoring.num_cached_tokens),
            mergeserve=provenance(served),
        )
        return json_response(scores, preset_headers(served))

    return await run_in_threadpool(answer)


def _encode(body: LoglikelihoodBody, served: Served, tokenizer: Tokenizer) -> list[GivenText]:
    encoder = TextEncoder(tokenizer, own_prompts(served.members))
    if body.texts is not None:
        return encoder.texts(body.texts)
    assert body.prompts is not None
    assert body.completions is not None
    return encoder.completions(body.prompts, body.completions)


def _check_size(num_tokens: int, num_top: int) -> None:
    if num_tokens * num_top > MAX_DUMPED:
        raise InvalidRequestError(
            f"top_logprobs {num_top} of {num_tokens} tokens are {num_tokens * num_top} values, and "
            f"one answer has at most {MAX_DUMPED}: send fewer texts, or ask for less",
            param="top_logprobs",
        )


def _request(
    body: LoglikelihoodBody, served: Served, text: GivenText, reader: LogprobsReader
) -> engine.Request:
    return engine.Request(
        members=engine_members(served, EncodedPrompt(text.token_ids, own=text.own)),
        sampling=SamplingParams(max_tokens=0),
        reader=reader,
        num_read=text.num_read,
        priority=body.priority or "live",
        label=served.preset or "",
        path=served.path,
        mode=served.mode,
    )


def _usage(
    served: Served,
    requests: Sequence[engine.Request],
    given: Sequence[GivenText],
    num_cached: int,
) -> Usage:
    num_tokens = sum(len(text.token_ids) for text in given)
    usage = Usage(
        prompt_tokens=num_tokens,
        completion_tokens=0,
        total_tokens=num_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached),
    )
    if served.combination is not None:
        rows = [len(member.prompt) for request in requests for member in request.members]
        usage.mergeserve = EnsembleUsage(
            members=len(served.members), member_prompt_tokens=sum(rows), member_forwards=0
        )
    return usage


class _Shown:
    """How texts are shown: `with_first` the one token that nothing predicts too."""

    def __init__(self, tokenizer: Tokenizer, *, with_first: bool, num_top: int) -> None:
        self._text_of = cache(tokenizer.token_name)  # for this answer: the same tokens come often
        self._with_first, self._num_top = with_first, num_top

    def score(self, index: int, text: GivenText, reader: LogprobsReader) -> Score:
        """One text's share of the answer."""
        tokens: Sequence[TokenLogprobs] = reader.tokens
        known = [finite(token.logprob) for token in tokens if token.logprob is not None]
        if self._with_first:
            tokens = [TokenLogprobs(text.token_ids[0]), *tokens]
        total = math.fsum(known)
        score = Score(
            index=index,
            tokens=[self._text_of(token.token_id) for token in tokens],
            token_ids=[token.token_id for token in tokens],
            logprobs=[None if t.logprob is None else finite(t.logprob) for t in tokens],
            num_tokens=len(known),
            sum=total,
            mean=total / len(known),
            perplexity=_perplexity(total / len(known)),
            is_greedy=reader.is_greedy,
        )
        if self._num_top > 0:
            score.top_token_ids = [_top_ids(token) for token in tokens]
            score.top_logprobs = [_top_logprobs(token) for token in tokens]
        return score


def _top_ids(token: TokenLogprobs) -> list[int] | None:
    return None if token.logprob is None else [token_id for token_id, _ in token.top]


def _top_logprobs(token: TokenLogprobs) -> list[float] | None:
    return None if token.logprob is None else [finite(logprob) for _, logprob in token.top]


def _perplexity(mean: float) -> float | None:
    try:
        return math.exp(-mean)
    except OverflowError:
        return None
