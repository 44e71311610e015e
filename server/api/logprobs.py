"""Log-probabilities as OpenAI shows them: parallel lists for completions, entries for chat."""

import codecs
from collections.abc import Sequence

from server.api.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    MemberLogprob,
    MemberLogprobs,
    TokenLogprob,
    TopLogprob,
)
from server.engine.request import TokenLogprobs
from server.engine.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have; as in vLLM."""


class TextOffsets:
    """Where each token's text begins in the answer's text, in characters.

    A token that begins inside a character has that character's offset. `start` is negative where
    the first tokens stand for no text: what the tokenizer put in front of a prompt.
    """

    def __init__(self, start: int = 0) -> None:
        self._position = start
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def advance(self, token: bytes) -> int:
        """The offset of the next token."""
        offset = max(self._position, 0)
        self._position += len(self._decoder.decode(token))
        return offset


def completion_logprobs(
    tokens: Sequence[TokenLogprobs],
    tokenizer: Tokenizer,
    offsets: TextOffsets,
    members: Sequence[str] = (),
) -> CompletionLogprobs:
    """The parallel lists of `/v1/completions`, and those of each of the `members` by itself."""
    logprobs = CompletionLogprobs(
        tokens=[tokenizer.token_text(token.token_id) for token in tokens],
        token_logprobs=[_logprob(token) for token in tokens],
        top_logprobs=[_alternatives(token, tokenizer) for token in tokens],
        text_offset=[offsets.advance(tokenizer.token_bytes(token.token_id)) for token in tokens],
    )
    if members:
        logprobs.members = {
            name: _member_lists([_of_member(token, index) for token in tokens], tokenizer)
            for index, name in enumerate(members)
        }
    return logprobs


def _member_lists(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> MemberLogprobs:
    return MemberLogprobs(
        token_logprobs=[_logprob(token) for token in tokens],
        top_logprobs=[_alternatives(token, tokenizer) for token in tokens],
    )


def _of_member(token: TokenLogprobs, index: int) -> TokenLogprobs:
    """What a member says of a token; nothing of a prompt's."""
    return token.members[index] if token.members else TokenLogprobs(token.token_id)


def _logprob(token: TokenLogprobs) -> float | None:
    return None if token.logprob is None else finite(token.logprob)


def finite(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LOWEST)


def _alternatives(token: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, float] | None:
    """The most likely tokens and the chosen one by text; of equal texts the likelier counts."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
        text = tokenizer.token_text(token_id)
        found[text] = max(finite(logprob), found.get(text, LOWEST))
    return found


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
