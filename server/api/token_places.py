"""Where the tokens of an answer stand in its text."""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from server.engine.detokenizer import CONTEXT_TOKENS
from server.engine.tokenizer import Tokenizer


class Place(NamedTuple):
    """Where a token's text begins, in characters, and the space of it that is not in the text."""

    offset: int
    cut: str = ""


class TokenPlaces:
    """Follows the tokens of one choice: those of an echoed prompt, then those that are generated.

    A token that begins inside a character has that character's offset. What the tokenizer puts in
    front of a prompt is not in its text: special tokens, and the space of the first word.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], echo: str = "") -> None:
        """`echo`: the text of `prompt` with which the answer's text begins."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._position = -_num_hidden(tokenizer, prompt, echo) if echo else 0
        self._generated_from: int | None = len(echo)
        # Decoders take the space of the first word that there is, as the detokenizer does.
        self._is_first = not tokenizer.decode_visible(prompt[-CONTEXT_TOKENS:])

    def echoed(self, token_id: int) -> Place:
        """The place of the prompt's next token."""
        begin, text = self._position, self._text(token_id)
        self._position += len(text)
        if begin >= 0 or self._tokenizer.is_special(token_id):
            return Place(max(begin, 0))
        hidden = text[:-begin]
        return Place(0, hidden if hidden.isspace() else "")

    def generated(self, token_id: int) -> Place:
        """The place of the next token that was generated."""
        if self._generated_from is not None:
            self._position, self._generated_from = self._generated_from, None
        place = Place(self._position)
        if not self._tokenizer.is_special(token_id):  # those are no part of the text
            text = self._text(token_id)
            if self._is_first and text[:1].isspace():
                text = text[len(text) - len(self._tokenizer.decode_visible([token_id])) :]
            self._position += len(text)
            self._is_first = False
        return place

    def _text(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))


def _num_hidden(tokenizer: Tokenizer, prompt: Sequence[int], echo: str) -> int:
    """Characters of a prompt's tokens before those of its text."""
    pieces = [tokenizer.token_bytes(token_id) for token_id in prompt]
    whole = b"".join(pieces).decode(errors="replace")
    if whole.endswith(echo):
        return len(whole) - len(echo)
    if echo in whole:  # a special token ends it
        return whole.index(echo)
    # A normalizer changed the text: what was put in front of it can be told all the same.
    num_special = next(
        (i for i, token_id in enumerate(prompt) if not tokenizer.is_special(token_id)), len(prompt)
    )
    front = b"".join(pieces[:num_special]).decode(errors="replace")
    hidden = 0 if echo.startswith(front) else len(front)
    is_spaced = whole[len(front) : len(front) + 1].isspace() and not echo[:1].isspace()
    return hidden + (is_spaced and hidden == len(front))
