"""Text from tokens, one at a time: multi-byte characters stay whole, and stop strings are found
across token boundaries.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

CONTEXT_TOKENS = 6
"""Prompt tokens decoded in front of the first new one: some tokenizers drop the space of a leading
word.
"""

INCOMPLETE = "�"


class Detokenizer:
    """Incremental text of one group.

    `decode` must skip special tokens. Text is held back while it may still change (an unfinished
    multi-byte character) or be swallowed (the beginning of a stop string).
    """

    def __init__(self, decode: Decode, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._stop = stop
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._context_start = 0  # tokens from here on are decoded again for context
        self._read_end = len(self._ids)  # tokens before this have given their text
        # a character that the prompt leaves unfinished becomes text when it is finished
        self._context_text = decode(self._ids).rstrip(INCOMPLETE)
        self._held = ""

    def push(self, token_id: int, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add a token. Returns new text, cut before a stop string, and that stop string if one was
        met.
        """
        self._ids.append(token_id)
        text = self._decode(self._ids[self._context_start :])
        if text.endswith(INCOMPLETE) or len(text) <= len(self._context_text):
            return "", None
        return self._release(self._advance(text), may_stop)

    def _advance(self, text: str) -> str:
        new = text[len(self._context_text) :]
        self._context_start, self._read_end = self._read_end, len(self._ids)
        self._context_text = self._decode(self._ids[self._context_start :])
        return new

    def _release(self, new: str, may_stop: bool) -> tuple[str, str | None]:
        text = self._held + new
        if may_stop:
            found = [(text.find(stop), stop) for stop in self._stop if stop in text]
            if found:
                start, stop = min(found)
                self._held = ""
                return text[:start], stop
        keep = self._num_held(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0

    def flush(self) -> str:
        """What is still held back, at the end of a group that no stop string ended."""
        text = (
            self._held + self._decode(self._ids[self._context_start :])[len(self._context_text) :]
        )
        self._held, self._context_text = "", self._decode(self._ids[self._context_start :])
        return text
