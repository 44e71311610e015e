"""A thin wrapper over a transformers tokenizer: what the API and the engine need of it, and its
errors as ours.
"""

from collections.abc import Iterable, Mapping, Sequence

from jinja2 import TemplateError as JinjaTemplateError
from transformers import PreTrainedTokenizerBase

from server.engine.conversation import (
    AS_THE_BASE,
    Conversation,
    TemplateOptions,
    pick_template,
    special_tokens,
)
from server.engine.token_texts import TokenTexts, as_text, escaped


class TemplateError(Exception):
    """The chat template cannot be applied to these messages."""


class Tokenizer:
    """Text to token ids and back. Its methods may be called from any thread.

    `conversation` is the base's, and `template_problem` says why it has no template that can be
    used, though its files have one.
    """

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
        self._texts = TokenTexts(tokenizer, max(vocab_size, len(tokenizer)))
        added = tokenizer.added_tokens_decoder.items()
        hidden = {index for index, token in added if token.special}
        self._special_ids = frozenset({*hidden, *tokenizer.all_special_ids})
        templates = chat_template or tokenizer.chat_template
        template, self.template_problem = pick_template(tokenizer, templates)
        self.conversation = Conversation(
            template, special_tokens(tokenizer, template), eos_token_ids
        )

    def has_chat_template(self, conversation: Conversation | None = None) -> bool:
        """Whether chat messages can be turned into a prompt, in the way of that conversation."""
        return self._template(conversation) is not None

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
        options: TemplateOptions = AS_THE_BASE,
    ) -> list[int]:
        """Token ids of a conversation. Raises `TemplateError` with the template's own message."""
        own = options.conversation or self.conversation
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template(own),
                tokenize=False,
                add_generation_prompt=options.add_generation_prompt,
                continue_final_message=options.continue_final_message,
                **{**own.special_tokens, **options.variables},
            )
        except Exception as error:  # a template is a program, and may fail in any way
            own_words = isinstance(error, JinjaTemplateError | ValueError | TypeError)
            raise TemplateError(str(error) if own_words else repr(error)) from error
        return self.encode(str(text), add_special_tokens=False)

    def _template(self, conversation: Conversation | None) -> str | None:
        own = None if conversation is None else conversation.template
        return own or self.conversation.template

    def ids_of(self, tokens: Iterable[str]) -> dict[str, int]:
        """The ids of those tokens, written as the vocabulary does, that there are."""
        vocabulary = self._tokenizer.get_vocab()
        return {token: vocabulary[token] for token in tokens if token in vocabulary}

    def is_special(self, token_id: int) -> bool:
        """Whether a token is left out of the visible text."""
        return token_id in self._special_ids

    def token_name(self, token_id: int) -> str:
        """The token's text, special ones included, or what stands for it: see `TokenTexts.name`."""
        return self._texts.name(token_id)

    def token_text(self, token_id: int) -> str:
        """The token's text; one that is none, as OpenAI's chat shows it: `\\xe5`."""
        raw = self.token_bytes(token_id)
        text = as_text(raw)
        return escaped(raw) if text is None else text

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, also where it is a piece of a character."""
        return self._texts.raw(token_id)
