"""Who edits, why and under which condition: `If-Match`, `If-None-Match`, `Prefer`, `?message=`."""

import re
from typing import Annotated

from fastapi import Depends, Query, Request

from server.errors import InvalidRequestError, PreconditionFailedError
from server.presets.record import Edit

MAX_MESSAGE_LEN = 1000
_ENTITY_TAG = re.compile(r'\s*(W/)?"([^"]*)"\s*')


def etag(revision: int) -> str:
    """The entity tag of a revision."""
    return f'"{revision}"'


async def read_edit(
    request: Request, message: Annotated[str, Query(max_length=MAX_MESSAGE_LEN)] = ""
) -> Edit:
    """The edit that a request asks for."""
    key = request.state.key
    if_match = _tags(request, "If-Match")
    if_none_match = _tags(request, "If-None-Match")
    if if_none_match not in (None, ["*"]):
        raise InvalidRequestError(
            "If-None-Match takes only * here, which creates and never replaces; to edit one "
            "revision only, send If-Match",
            param="If-None-Match",
        )
    return Edit(
        author="" if key is None else key.name,
        message=message,
        if_match=None if if_match in (None, ["*"]) else _revisions(if_match or []),
        if_match_any=if_match == ["*"],
        if_none_match_any=if_none_match == ["*"],
        wait=not prefers_async(request),
    )


async def no_conditions(request: Request) -> None:
    """Refuse conditions on what has no revisions."""
    for header in ("If-Match", "If-None-Match"):
        if header in request.headers:
            raise InvalidRequestError(f"{header}: sources have no revisions", param=header)


EditDep = Annotated[Edit, Depends(read_edit)]


def prefers_async(request: Request) -> bool:
    """Whether `Prefer: respond-async` asks to be answered before the new revision serves."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(item.partition(";")[0].strip().lower() == "respond-async" for item in preferences)


def check_if_match(request: Request, revision: int) -> None:
    """Hold a read's `If-Match` against the revision that it would give."""
    tags = _tags(request, "If-Match")
    if tags not in (None, ["*"]) and revision not in _revisions(tags or []):
        raise PreconditionFailedError(
            f"this is revision {revision} and If-Match asks for another: leave it out to read this"
        )


def is_known(request: Request, revision: int) -> bool:
    """Whether `If-None-Match` names the revision, so that it need not be sent again."""
    tags = _tags(request, "If-None-Match") or []
    return tags == ["*"] or etag(revision) in [tag.removeprefix("W/") for tag in tags]


def _tags(request: Request, header: str) -> list[str] | None:
    """The entity tags of a header, `["*"]`, or None where it is absent."""
    values = request.headers.getlist(header)
    if not values:
        return None
    text = ",".join(values)
    if text.strip() == "*":
        return ["*"]
    tags, position = [], 0
    while match := _ENTITY_TAG.match(text, position):
        tags.append(match[0].strip())
        position = match.end()
        if position == len(text):
            return tags
        if text[position] != ",":
            break
        position += 1
    raise InvalidRequestError(
        f'{header}: {text!r} is not a list of entity tags such as "7", "8" (with the quotes), or *',
        param=header,
    )


def _revisions(tags: list[str]) -> tuple[int, ...]:
    """The revisions that tags name; weak tags and tags of something else match nothing."""
    numbers = [tag.strip('"') for tag in tags if not tag.startswith("W/")]
    return tuple(
        int(number) for number in numbers if re.fullmatch(r"[1-9][0-9]{0,17}", number) is not None
    )
