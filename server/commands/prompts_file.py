"""A file of prompts for a comparison: one JSON object a line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

MAX_REPORTED = 20
"""Bad lines that are told of one by one."""


class PromptsFileError(Exception):
    """A file that cannot be used; `reasons` has every bad line by its number."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


class PromptLine(BaseModel):
    """One line: a prompt or a conversation, perhaps with a good answer and the task's name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[dict[str, JsonValue]], Field(min_length=1)] | None = None
    reference: Annotated[str, Field(min_length=1)] | None = None
    tag: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("needs either prompt or messages")
        return self


def read_prompts(path: Path) -> list[PromptLine]:
    """Read a file; empty lines do not count. Raises PromptsFileError with every bad line."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsFileError([f"{path}: {error}"]) from error
    lines: dict[int, PromptLine] = {}
    reasons: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                lines[number] = PromptLine.model_validate_json(line)
            except ValidationError as error:
                reasons.append(f"{path}:{number}: {'; '.join(_reasons(error))}")
    reasons += _mixed(path, lines)
    if not lines and not reasons:
        reasons.append(f"{path}: has no prompts")
    if reasons:
        more = len(reasons) - MAX_REPORTED
        shown = reasons[:MAX_REPORTED]
        raise PromptsFileError([*shown, f"and {more} more bad lines"] if more > 0 else shown)
    return list(lines.values())


def _reasons(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        where = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "unknown field; there are prompt, messages, reference and tag"
        yield f"{where}: {message}" if where else message


def _mixed(path: Path, lines: dict[int, PromptLine]) -> list[str]:
    """One request has either prompts or conversations."""
    talks = [number for number, line in lines.items() if line.messages is not None]
    if not talks or len(talks) == len(lines):
        return []
    plain = next(number for number, line in lines.items() if line.messages is None)
    return [
        f"{path}:{talks[0]}: has messages, and line {plain} a prompt: use one of them in a file"
    ]
