"""What every token of a vocabulary is by itself: its bytes, and a name that no other has."""

import re
import string
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

INCOMPLETE = "�"
BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """The bytes and the name of each token.

    A token's text is what it adds between two others: decoders strip the space of a text's first
    token, so a token decoded alone is not itself. `▁true` is " true" here and `true` is "true".
    Where that is no text, because the token is a piece of a character, its bytes are taken from the
    vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> None:
        """`num_tokens`: of the tokenizer or the model's embedding, whichever has more."""
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._byte_by_char = {char: byte for byte, char in bytes_to_unicode().items()}
        self._added = tokenizer.added_tokens_decoder
        self._anchor = self._find_anchor()
        self._bytes = [self._bytes_of(token_id) for token_id in range(num_tokens)]
        self._owners = self._find_owners()

    def raw(self, token_id: int) -> bytes:
        """Bytes of one token; none for a row of the embedding that has no token."""
        return self._bytes[token_id]

    def name(self, token_id: int) -> str:
        """The token's text. One that is no text, or has another token's, is told from all others:
        `bytes:\\xe5` as in OpenAI's completions, or `token_id:7` as in vLLM's.
        """
        raw = self._bytes[token_id]
        if raw and self._owners.get(raw, token_id) == token_id:
            text = as_text(raw)
            return f"bytes:{escaped(raw)}" if text is None else text
        if raw and BYTE_PIECE.fullmatch(self._piece(token_id)):
            return f"bytes:{escaped(raw)}"
        return f"token_id:{token_id}"

    def _bytes_of(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None and added.special:
            return str(added).encode()
        text = self._between(token_id)
        if INCOMPLETE not in text:
            return text.encode(errors="replace")
        if added is not None:
            return str(added).encode()
        piece = self._piece(token_id)
        if match := BYTE_PIECE.fullmatch(piece):  # SentencePiece's byte fallback
            return bytes.fromhex(match[1])
        if all(char in self._byte_by_char for char in piece):  # byte-level BPE
            return bytes(self._byte_by_char[char] for char in piece)
        return text.encode(errors="replace")

    def _between(self, token_id: int) -> str:
        """The text that a token adds between two others; alone where that cannot be told."""
        if self._anchor is not None:
            anchor, before, after = self._anchor
            text = self._decode(anchor, token_id, anchor)
            end = len(text) - len(after)
            if len(before) <= end and text.startswith(before) and text.endswith(after):
                return text[len(before) : end]
        return self._decode(token_id)

    def _find_anchor(self) -> tuple[int, str, str] | None:
        """A token that others are put between, its text at the beginning of a text, and after
        another token. The latter has no space of its own: that may be the other token's.
        """
        for token_id in self._candidates():
            before = self._decode(token_id)
            both = self._decode(token_id, token_id)
            after = both[len(before) :]
            is_plain = bool(after) and not any(char.isspace() for char in after)
            if is_plain and both.startswith(before) and INCOMPLETE not in both:
                return token_id, before, after
        return None

    def _candidates(self) -> Iterator[int]:
        """Letters within a word first, then whatever there is."""
        vocabulary = self._tokenizer.get_vocab()
        for piece in (*(f"##{letter}" for letter in string.ascii_letters), *string.ascii_letters):
            if piece in vocabulary:
                yield vocabulary[piece]
        yield from (i for i in sorted(vocabulary.values()) if i not in self._added)

    def _find_owners(self) -> dict[bytes, int]:
        """Which token has the name, where several have the same bytes: one that is spelled out
        rather than a byte of the fallback, which the tokenizer then does not use.
        """
        seen: set[bytes] = set()
        shared: set[bytes] = set()
        for raw in self._bytes:
            (shared if raw in seen else seen).add(raw)
        owners: dict[bytes, int] = {}
        for token_id, raw in enumerate(self._bytes):
            if raw in shared and (
                raw not in owners or BYTE_PIECE.fullmatch(self._piece(owners[raw]))
            ):
                owners[raw] = token_id
        return owners

    def _piece(self, token_id: int) -> str:
        """How the vocabulary writes a token."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def _decode(self, *token_ids: int) -> str:
        if self._backend is not None:  # the same, without what transformers adds for each call
            return str(self._backend.decode(token_ids, skip_special_tokens=False))
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(token_ids), **options))


def as_text(raw: bytes) -> str | None:
    """The text of these bytes; None if they are none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def escaped(raw: bytes) -> str:
    """Bytes as OpenAI shows them: what can be printed as it is, the rest as `\\xe5`."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in raw
    )
