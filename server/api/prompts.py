"""Prompts: from what the caller sent to token ids that the engine can read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool

from server.api.fields import Prompt
from server.api.sampling import check_token_ids
from server.api.schemas import Message
from server.engine.tokenizer import Tokenizer
from server.errors import InvalidRequestError

SHORT_TEXT = 8192
"""Characters that are tokenized on the event loop: less work than changing threads."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's token ids, and its text where it came as text."""

    token_ids: tuple[int, ...]
    text: str | None = None


async def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer
) -> tuple[EncodedPrompt, ...]:
    """Token ids of prompts; texts get what the tokenizer adds, token ids are used as they are."""
    if sum(len(prompt) for prompt in prompts) <= SHORT_TEXT:
        return tuple(_encode(prompts, tokenizer))
    return await run_in_threadpool(lambda: tuple(_encode(prompts, tokenizer)))


def _encode(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> Iterator[EncodedPrompt]:
    for prompt in prompts:
        if isinstance(prompt, str):
            encoded = EncodedPrompt(tuple(tokenizer.encode(prompt)), prompt)
        else:
            check_token_ids(prompt, tokenizer.vocab_size, "prompt")
            encoded = EncodedPrompt(prompt)
        if not encoded.token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt", code="empty_prompt")
        yield encoded


async def encode_messages(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> EncodedPrompt:
    """Token ids of a conversation. Raises TemplateError with the chat template's own message."""
    if not tokenizer.has_chat_template:
        raise InvalidRequestError(
            "this base has no chat template: use /v1/completions, or start the server with "
            "--chat-template FILE",
            param="messages",
            code="no_chat_template",
        )

    def encode() -> EncodedPrompt:
        token_ids = tokenizer.apply_chat_template(
            [message.for_template() for message in messages],
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return EncodedPrompt(tuple(token_ids))

    if sum(len(message.content) for message in messages) <= SHORT_TEXT:
        encoded = encode()
    else:
        encoded = await run_in_threadpool(encode)
    if not encoded.token_ids:
        raise InvalidRequestError(
            "the chat template makes an empty prompt of these messages",
            param="messages",
            code="empty_prompt",
        )
    return encoded
