"""Prompts: from what the caller sent to token ids that the engine can read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from fastapi.concurrency import run_in_threadpool

from server.api.fields import Prompt
from server.api.sampling import check_token_ids
from server.api.schemas import Message
from server.engine.conversation import AS_THE_BASE, TemplateOptions
from server.engine.tokenizer import Tokenizer
from server.errors import InvalidRequestError

SHORT_TEXT = 8192
"""Characters that are tokenized on the event loop: less work than changing threads."""


class PromptReader(Protocol):
    """A member, as far as it reads something of its own."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def system(self) -> str | None:
        """Its own system prompt; None: the request's."""

    @property
    def prompt(self) -> str | None:
        """Its own prompt; None: the request's."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's token ids, and its text where it came as text.

    `own` has the token ids of members that read another prompt, by name.
    """

    token_ids: tuple[int, ...]
    text: str | None = None
    own: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt that a member reads."""
        return max(len(self.token_ids), *map(len, self.own.values()), 0)


async def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, members: Sequence[PromptReader] = ()
) -> tuple[EncodedPrompt, ...]:
    """The same as `prompt_ids`, on a thread where that takes long."""
    own = own_prompts(members)
    if sum(len(prompt) for prompt in (*prompts, *own.values())) <= SHORT_TEXT:
        return prompt_ids(prompts, tokenizer, members)
    return await run_in_threadpool(prompt_ids, prompts, tokenizer, members)


def prompt_ids(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, members: Sequence[PromptReader] = ()
) -> tuple[EncodedPrompt, ...]:
    """Token ids of prompts; texts get what the tokenizer adds, token ids are used as they are.

    A member with a prompt of its own reads that instead of each of them.
    """
    return tuple(_encode(prompts, own_prompts(members), tokenizer))


def own_prompts(members: Sequence[PromptReader]) -> dict[str, str]:
    """The prompts of members that have one of their own, by name; InvalidRequestError where one has
    a system prompt, which only conversations have.
    """
    for member in members:
        if member.system is not None:
            raise InvalidRequestError(
                f"the member {member.name!r} has a system prompt of its own, and only "
                "conversations have system prompts: use /v1/chat/completions, or give it a prompt",
                param="prompt",
            )
    return {member.name: member.prompt for member in members if member.prompt is not None}


def _encode(
    prompts: Sequence[Prompt], own: Mapping[str, str], tokenizer: Tokenizer
) -> Iterator[EncodedPrompt]:
    encoded_own = {name: _token_ids(text, tokenizer) for name, text in own.items()}
    for prompt in prompts:
        text = prompt if isinstance(prompt, str) else None
        yield EncodedPrompt(_token_ids(prompt, tokenizer), text, encoded_own)


def _token_ids(prompt: Prompt, tokenizer: Tokenizer) -> tuple[int, ...]:
    if isinstance(prompt, str):
        prompt = tuple(tokenizer.encode(prompt))
    else:
        check_token_ids(prompt, tokenizer.vocab_size, "prompt")
    if not prompt:
        raise InvalidRequestError("the prompt is empty", param="prompt", code="empty_prompt")
    return prompt


async def encode_messages(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    members: Sequence[PromptReader] = (),
    options: TemplateOptions = AS_THE_BASE,
) -> EncodedPrompt:
    """The same as `message_ids`, on a thread where that takes long."""
    call = partial(message_ids, messages, tokenizer, members, options)
    num_readers = 1 + sum(member.system is not None for member in members)
    if sum(len(message.content) for message in messages) * num_readers <= SHORT_TEXT:
        return call()
    return await run_in_threadpool(call)


def message_ids(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    members: Sequence[PromptReader] = (),
    options: TemplateOptions = AS_THE_BASE,
) -> EncodedPrompt:
    """Token ids of a conversation. Raises TemplateError with the chat template's own message.

    A member with a system prompt of its own reads the conversation with that one: in place of its
    system messages, at the beginning; with none if it is empty.
    """
    _check_has_template(tokenizer, options)
    for member in members:
        if member.prompt is not None:
            raise InvalidRequestError(
                f"the member {member.name!r} has a prompt of its own, which would take the place "
                "of the conversation: use /v1/completions, or give it a system prompt",
                param="messages",
            )
    own = {m.name: m.system for m in members if m.system is not None}

    def token_ids(messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return tuple(tokenizer.apply_chat_template(messages, options))

    plain = [message.for_template() for message in messages]
    by_member = {name: token_ids(_with_system(plain, text)) for name, text in own.items()}
    encoded = EncodedPrompt(token_ids(plain), own=by_member)
    if not all((encoded.token_ids, *encoded.own.values())):
        raise InvalidRequestError(
            "the chat template makes an empty prompt of these messages",
            param="messages",
            code="empty_prompt",
        )
    return encoded


def _check_has_template(tokenizer: Tokenizer, options: TemplateOptions) -> None:
    if tokenizer.has_chat_template(options.conversation):
        return
    why = "this base has no chat template"
    if tokenizer.template_problem is not None:
        why = f"this base's chat template cannot be used: {tokenizer.template_problem}"
    raise InvalidRequestError(
        f"{why}: use /v1/completions, or start the server with --chat-template FILE",
        param="messages",
        code="no_chat_template",
    )


def _with_system(messages: Sequence[dict[str, str]], system: str) -> list[dict[str, str]]:
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": system}, *rest] if system else rest
