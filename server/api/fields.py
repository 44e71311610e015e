"""Building blocks of the request schemas: fields with a neutral value, prompts, messages."""

from collections.abc import Sequence
from typing import Annotated, NoReturn

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PlainValidator,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

Prompt = str | tuple[int, ...]
"""Text, or token ids that are used as they are."""


def _fail(kind: str, message: str, param: str | None = None) -> NoReturn:
    # A custom error's message is a template: what comes from the caller goes in as a value.
    raise PydanticCustomError(kind, "{message}", {"message": message, "param": param})


def refuse(param: str, message: str) -> NoReturn:
    """Blame one field, in a validator that sees several."""
    _fail("refused", message, param)


def neutral(*values: JsonValue) -> AfterValidator:
    """Mark a field that is not supported: it may only be null or have one of these values."""

    def check(value: JsonValue) -> JsonValue:
        if value is not None and not any(_same(value, allowed) for allowed in values):
            allowed = " or ".join(["null", *map(repr, values)])
            _fail(
                "unsupported", f"is not supported by this server: leave it out, or send {allowed}"
            )
        return value

    return AfterValidator(check)


def _same(value: JsonValue, other: JsonValue) -> bool:
    """Equality that tells True from 1."""
    return type(value) is type(other) and value == other


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


NonEmptyText = Annotated[str, Field(min_length=1, max_length=1024)]
StopStrings = Annotated[list[NonEmptyText], BeforeValidator(_as_list), Field(max_length=16)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def parse_prompts(value: object) -> tuple[Prompt, ...]:
    """Read the four forms of `prompt`: a string, strings, token ids, lists of token ids."""
    if isinstance(value, str):
        return (_text(value),)
    if not isinstance(value, list):
        _fail("prompt_type", "must be a string, strings, token ids, or lists of token ids")
    if not value:
        _fail("empty_prompt", "is empty")
    if isinstance(value[0], str):
        return tuple(_text(item) for item in value)
    if isinstance(value[0], list):
        return tuple(_token_ids(item) for item in value)
    return (_token_ids(value),)


def _text(value: object) -> str:
    if not isinstance(value, str):
        _fail("prompt_type", f"mixes strings with {type(value).__name__}")
    if not value:
        _fail("empty_prompt", "is empty")
    return value


def _token_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        _fail("prompt_type", f"mixes lists of token ids with {type(value).__name__}")
    if not value:
        _fail("empty_prompt", "is empty")
    if not all(type(item) is int for item in value):
        _fail("prompt_type", "a list of token ids may hold integers only")
    return tuple(value)


def parse_content(value: object) -> str:
    """Read a message's content: a string, or text parts, which become one string by lines."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        _fail("content_type", f"must be a string or a list of text parts, not {_name(value)}")
    return "\n".join(_text_part(index, part) for index, part in enumerate(value))


def _text_part(index: int, part: object) -> str:
    if not isinstance(part, dict):
        _fail("content_type", f"part {index} must be an object, not {_name(part)}")
    if part.get("type") != "text":
        kind = part.get("type")
        _fail("unsupported", f"part {index} is of type {kind!r}, and only 'text' is supported")
    if not isinstance(part.get("text"), str):
        _fail("content_type", f"part {index} needs a string as its 'text'")
    if unknown := part.keys() - {"type", "text"}:
        _fail("unsupported", f"part {index} has {sorted(unknown)[0]!r}, which is not supported")
    text: str = part["text"]
    return text


def _name(value: object) -> str:
    return "null" if value is None else type(value).__name__


AUTO_WEIGHTS = ("auto:prompt_perplexity", "auto:route")


def _weights(value: object, parse_numbers: ValidatorFunctionWrapHandler) -> object:
    if not isinstance(value, str):
        return parse_numbers(value)
    if value not in AUTO_WEIGHTS:
        _fail("weights_type", f"must be numbers by source, or one of {', '.join(AUTO_WEIGHTS)}")
    return value


# A union would name its parts in the path of every error.
Weights = Annotated[dict[str, float], WrapValidator(_weights)]
"""Weights by source, or the name of a way to choose them, a string."""
Prompts = Annotated[Sequence[Prompt], PlainValidator(parse_prompts)]
Content = Annotated[str, PlainValidator(parse_content)]
