"""Names of presets and sources, and the strings that callers send as `model`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from merging.base import Base
from server.errors import ConflictError, InvalidRequestError, NotFoundError
from server.suggestion import did_you_mean

BASE = "base"
"""Always the resident base, whatever its id is."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_MODEL_STRING = re.compile(
    rf"(?P<name>{NAME_PATTERN})(@(?P<revision>[1-9][0-9]{{0,17}}))?(:(?P<mode>merge|ensemble))?"
)


@dataclass(frozen=True, slots=True)
class ModelString:
    """`tutor`, `tutor@7`, `tutor:ensemble` or `tutor@7:merge`, taken apart."""

    name: str
    revision: int | None
    mode: str | None


def parse_model_string(text: str) -> ModelString:
    """Take a model string apart; one that cannot name anything is not found."""
    match = _MODEL_STRING.fullmatch(text)
    if match is None:
        raise model_not_found(text, "A model is NAME, NAME@REVISION, NAME:merge or NAME:ensemble.")
    revision = match["revision"]
    return ModelString(match["name"], int(revision) if revision else None, match["mode"])


def model_not_found(text: str, hint: str, known: Iterable[str] = ()) -> NotFoundError:
    """The error OpenAI's clients know for an unknown model; `known` are names that there are."""
    name = re.split("[@:]", text, maxsplit=1)[0]
    meant = did_you_mean(name, known)
    return NotFoundError(
        f"The model {text!r} does not exist. {meant}{hint}", param="model", code="model_not_found"
    )


def check_name(name: str, *, kind: str) -> None:
    """Refuse a malformed name."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InvalidRequestError(
            f"{name!r} is not a {kind} name: use 1 to 64 letters, digits, dots, underscores and "
            "hyphens, the first one a letter or a digit",
            param="name",
        )


def name_taken(name: str, owner: str, *, kind: str) -> ConflictError:
    """The error for a name that already means something else."""
    return ConflictError(
        f"{name!r} is already {owner}: choose another name for the {kind}", param="name"
    )


def is_base(name: str, base: Base) -> bool:
    """Whether a name means the resident base."""
    return name in (BASE, base.name)
