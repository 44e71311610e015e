"""Variables of chat templates that a request or a preset may set: `chat_template_kwargs`."""

import inspect
from functools import cache
from typing import Annotated, Final

from pydantic import AfterValidator, JsonValue
from pydantic_core import PydanticCustomError

MAX_VARIABLES: Final = 64
MAX_DEPTH: Final = 16
MAX_CHARACTERS: Final = 2**18
"""Of all names and texts together."""
MAX_NUMBER: Final = 2**31


@cache
def reserved_names() -> frozenset[str]:
    """What is the request's own, or the tokenizer's: messages, which template, and how."""
    from transformers import PreTrainedTokenizerBase  # late: settings are read without torch

    return frozenset(
        {
            *("messages", "raise_exception", "strftime_now"),
            *(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
            *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
        }
    )


def _check(variables: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse names that are not the template's to have, and what would make it work for long."""
    for name in variables:
        if not name.isidentifier():
            _refuse(f"{name[:80]!r} is no name of a variable")
        if name in reserved_names():
            _refuse(
                f"{name!r} is not a variable of the template's own: "
                "messages, add_generation_prompt and continue_final_message are fields of the "
                "request, and the template is the model's"
            )
    if len(variables) > MAX_VARIABLES:
        _refuse(f"has {len(variables)} variables, and may have {MAX_VARIABLES}")
    if _size(variables) > MAX_CHARACTERS:
        _refuse(f"is longer than {MAX_CHARACTERS} characters")
    return variables


def _size(value: JsonValue, depth: int = 0) -> int:
    """Characters of a value; refused if it is too deep, or holds a number that is too large."""
    if depth > MAX_DEPTH:
        _refuse(f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return sum(len(key) + _size(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return sum(1 + _size(item, depth + 1) for item in value)
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        _refuse(f"holds the number {str(value)[:40]}, and they go up to {MAX_NUMBER}")
    return len(value) if isinstance(value, str) else 1


def _refuse(message: str) -> None:
    # A custom error's message is a template: what comes from the caller goes in as a value.
    raise PydanticCustomError("template_variables", "{message}", {"message": message})


TemplateVariables = Annotated[dict[str, JsonValue], AfterValidator(_check)]
