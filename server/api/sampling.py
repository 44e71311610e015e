"""Sampling parameters: the request's, else the preset's, the server's, and else OpenAI's."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

from server.api.schemas import ChatBody, CompletionBody, SamplingBody
from server.engine.request import SamplingParams
from server.errors import InvalidRequestError
from server.presets.sampling_defaults import SamplingDefaults

COMPLETION_MAX_TOKENS = 16
Value = TypeVar("Value")

NO_SEED = -1

GREEDY_BELOW = 1e-5
"""Temperatures too small to divide by mean greedy, as in vLLM."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request has to fit into.

    `prompt_len` is that of its longest prompt, which came in the field `prompt_field`. The rows of
    one group find room in the KV cache for `kv_len` tokens each.
    """

    prompt_field: str
    prompt_len: int
    max_model_len: int
    kv_len: int
    vocab_size: int


def completion_sampling(
    body: CompletionBody, defaults: SamplingDefaults, limits: Limits
) -> SamplingParams:
    """Sampling parameters of a completion. Without `max_tokens` it has 16."""
    wanted = defaults.max_tokens or COMPLETION_MAX_TOKENS
    max_tokens = _token_limit(body.max_tokens, "max_tokens", wanted, limits)
    prompt_logprobs = body.logprobs if body.echo else None
    return _sampling(body, defaults, limits, max_tokens, body.logprobs, prompt_logprobs)


def chat_sampling(body: ChatBody, defaults: SamplingDefaults, limits: Limits) -> SamplingParams:
    """Sampling parameters of a chat completion. Without a limit it has what fits the context, and
    for all members of an ensemble the KV cache.
    """
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    wanted = defaults.max_tokens or max(1, limits.kv_len - limits.prompt_len)
    max_tokens = _token_limit(body.token_limit, name, wanted, limits)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _sampling(body, defaults, limits, max_tokens, logprobs, None)


def comparison_sampling(body: SamplingBody, max_tokens: int, limits: Limits) -> SamplingParams:
    """Sampling parameters of every candidate of a comparison: the same for all, so that presets'
    defaults do not count; greedy where the request says nothing, and under a seed.
    """
    greedy = SamplingDefaults(temperature=0.0, seed=0)
    wanted = _token_limit(max_tokens, "max_tokens", max_tokens, limits)
    return _sampling(body, greedy, limits, wanted, None, None)


def _token_limit(given: int | None, name: str, wanted: int, limits: Limits) -> int:
    """Tokens to generate; more than the context holds is an error if the caller asked for it."""
    room = limits.max_model_len - limits.prompt_len
    if room < 0 or (room == 0 and given != 0):
        raise InvalidRequestError(
            f"this model's maximum context length is {limits.max_model_len} tokens, the answer "
            f"included, and the prompt alone has {limits.prompt_len}: shorten the prompt",
            param=limits.prompt_field,
            code="context_length_exceeded",
        )
    if given is not None and given > room:
        raise InvalidRequestError(
            f"this model's maximum context length is {limits.max_model_len} tokens, and the "
            f"request asks for {limits.prompt_len + given}: {limits.prompt_len} in the prompt and "
            f"{given} for the answer. Shorten the prompt or lower {name}",
            param=name,
            code="context_length_exceeded",
        )
    return min(wanted, room) if given is None else given


def _sampling(
    body: SamplingBody,
    defaults: SamplingDefaults,
    limits: Limits,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    stop_token_ids = tuple(_first(body.stop_token_ids, defaults.stop_token_ids, ()))
    logit_bias = body.logit_bias or {}
    check_token_ids(stop_token_ids, limits.vocab_size, "stop_token_ids")
    check_token_ids(logit_bias.keys(), limits.vocab_size, "logit_bias")
    temperature = _first(body.temperature, defaults.temperature, 1.0)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        top_k=min(max(_first(body.top_k, defaults.top_k, 0), 0), limits.vocab_size),
        min_p=_first(body.min_p, defaults.min_p, 0.0),
        presence_penalty=_first(body.presence_penalty, defaults.presence_penalty, 0.0),
        frequency_penalty=_first(body.frequency_penalty, defaults.frequency_penalty, 0.0),
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=logit_bias,
        stop=tuple(_first(body.stop, defaults.stop, ())),
        stop_token_ids=stop_token_ids,
        ignore_eos=bool(body.ignore_eos),
        min_tokens=_min_tokens(body.min_tokens, defaults.min_tokens, max_tokens),
        seed=_seed(body.seed, defaults.seed),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        member_logprobs=body.members_top_k,
    )


def _first(given: Value | None, default: Value | None, fallback: Value) -> Value:
    if given is not None:
        return given
    return fallback if default is None else default


def _seed(given: int | None, default: int | None) -> int | None:
    """-1 is none, in words of clients that cannot leave a field out; as in vLLM."""
    seed = _first(given, default, NO_SEED)
    return None if seed == NO_SEED else seed


def _min_tokens(given: int | None, default: int | None, max_tokens: int) -> int:
    if given is not None and given > max_tokens:
        raise InvalidRequestError(
            f"min_tokens is {given}, more than the {max_tokens} tokens that may be generated",
            param="min_tokens",
        )
    return min(_first(given, default, 0), max_tokens)


def check_token_ids(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the model's vocabulary does not have."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequestError(
            f"{param}: token id {wrong} is not in the model's vocabulary of {vocab_size} tokens",
            param=param,
        )
