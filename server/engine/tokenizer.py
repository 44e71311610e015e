"""A thin wrapper over a transformers tokenizer: what the API and the engine need of it, and its
errors as ours.
"""

import re
from collections.abc import Mapping, Sequence

from jinja2 import TemplateError as JinjaTemplateError
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

INCOMPLETE = "�"
BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")


class TemplateError(Exception):
    """The chat template cannot be applied to these messages."""


class Tokenizer:
    """Text to token ids and back. Its methods may be called from any thread."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        chat_template: str | None = None,
    ) -> None:
        """`vocab_size`: rows of the model's embedding, so ids below it are valid. `chat_template`
        overrides the model's own.
        """
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self._tokenizer = tokenizer
        self._chat_template = chat_template or tokenizer.chat_template
        self._byte_by_char = {char: byte for byte, char in bytes_to_unicode().items()}

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be turned into a prompt."""
        return self._chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with what the tokenizer adds by itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `token_ids`."""
        text = self._tokenizer.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)
        return text

    def decode_visible(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids` without special tokens: what the engine's detokenizer uses."""
        return self.decode(token_ids, skip_special_tokens=True)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Token ids of a conversation. Raises `TemplateError` with the template's own message."""
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except (JinjaTemplateError, ValueError, TypeError) as error:
            raise TemplateError(str(error)) from error
        return self.encode(str(text), add_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """Text of one token, special ones included; bytes that are no character of their own give
        U+FFFD.
        """
        return self.decode([token_id])

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, also where it is a piece of a character."""
        text = self.token_text(token_id)
        if INCOMPLETE not in text:
            return text.encode()
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if match := BYTE_FALLBACK.fullmatch(piece):  # SentencePiece: <0xE2>
            return bytes.fromhex(match[1])
        if all(char in self._byte_by_char for char in piece):  # byte-level BPE
            return bytes(self._byte_by_char[char] for char in piece)
        return text.encode()
