"""Log-probabilities as OpenAI shows them: parallel lists for completions, entries for chat."""

from collections.abc import Sequence

from server.api.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    MemberLogprob,
    MemberLogprobs,
    TokenLogprob,
    TopLogprob,
)
from server.api.token_places import Place
from server.engine.request import TokenLogprobs
from server.engine.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have; as in vLLM."""


def completion_logprobs(
    tokens: Sequence[TokenLogprobs],
    tokenizer: Tokenizer,
    places: Sequence[Place],
    members: Sequence[str] = (),
) -> CompletionLogprobs:
    """The parallel lists of `/v1/completions`, and those of each of the `members` by itself."""
    logprobs = CompletionLogprobs(
        tokens=[
            tokenizer.token_name(token.token_id).removeprefix(place.cut)
            for token, place in zip(tokens, places, strict=True)
        ],
        token_logprobs=[_logprob(token) for token in tokens],
        top_logprobs=_all_alternatives(tokens, tokenizer, places),
        text_offset=[place.offset for place in places],
    )
    if members:
        logprobs.members = {
            name: _member_lists([_of_member(token, index) for token in tokens], tokenizer, places)
            for index, name in enumerate(members)
        }
    return logprobs


def _member_lists(
    tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer, places: Sequence[Place]
) -> MemberLogprobs:
    return MemberLogprobs(
        token_logprobs=[_logprob(token) for token in tokens],
        top_logprobs=_all_alternatives(tokens, tokenizer, places),
    )


def _all_alternatives(
    tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer, places: Sequence[Place]
) -> list[dict[str, float] | None]:
    pairs = zip(tokens, places, strict=True)
    return [_alternatives(token, tokenizer, place.cut) for token, place in pairs]


def _of_member(token: TokenLogprobs, index: int) -> TokenLogprobs:
    """What a member says of a token; nothing of a prompt's."""
    return token.members[index] if token.members else TokenLogprobs(token.token_id)


def _logprob(token: TokenLogprobs) -> float | None:
    return None if token.logprob is None else finite(token.logprob)


def finite(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LOWEST)


def _alternatives(token: TokenLogprobs, tokenizer: Tokenizer, cut: str) -> dict[str, float] | None:
    """The most likely tokens and the chosen one, each under a name of its own."""
    if token.logprob is None:
        return None
    entries = (*token.top, (token.token_id, token.logprob))
    names = _names([token.token_id, *(token_id for token_id, _ in token.top)], tokenizer, cut)
    return {names[token_id]: finite(logprob) for token_id, logprob in entries}


def _names(token_ids: Sequence[int], tokenizer: Tokenizer, cut: str) -> dict[int, str]:
    """Names of alternatives where `cut` is not in the text, the first one's at any rate."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for token_id in dict.fromkeys(token_ids):
        name = tokenizer.token_name(token_id)
        free = (n for n in (name.removeprefix(cut), name) if n not in taken)
        names[token_id] = next(free, f"token_id:{token_id}")
        taken.add(names[token_id])
    return names


def chat_logprobs(
    tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer, members: Sequence[str] = ()
) -> ChatLogprobs:
    """The entries of `/v1/chat/completions`, with what each of the `members` says by itself."""
    entries = [_entry(token, tokenizer, members) for token in tokens]
    return ChatLogprobs(content=entries, refusal=None)


def _entry(token: TokenLogprobs, tokenizer: Tokenizer, members: Sequence[str]) -> TokenLogprob:
    assert token.logprob is not None, "only a prompt's first token has no log-probability"
    entry = TokenLogprob(
        token=tokenizer.token_text(token.token_id),
        logprob=finite(token.logprob),
        bytes=list(tokenizer.token_bytes(token.token_id)),
        top_logprobs=_top(token, tokenizer),
    )
    if members:
        entry.members = {
            name: MemberLogprob(
                logprob=finite(own.logprob or 0.0), top_logprobs=_top(own, tokenizer)
            )
            for name, own in zip(members, token.members, strict=True)
        }
    return entry


def _top(token: TokenLogprobs, tokenizer: Tokenizer) -> list[TopLogprob]:
    return [
        TopLogprob(
            token=tokenizer.token_text(token_id),
            logprob=finite(logprob),
            bytes=list(tokenizer.token_bytes(token_id)),
        )
        for token_id, logprob in token.top
    ]
