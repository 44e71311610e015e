"""Request bodies: bounded while they are read, of the right content type, strictly parsed."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import from_json

from server.api.errors import UnsupportedMediaTypeError, validation_error
from server.errors import InvalidRequestError, TooLargeError

MAX_BODY_BYTES = 8 * 1024 * 1024
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request) -> bytes:
    """The body, or TooLargeError as soon as it is known to be longer than allowed."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > MAX_BODY_BYTES:
            raise _too_large()
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large() -> TooLargeError:
    return TooLargeError(f"the body is larger than {MAX_BODY_BYTES} bytes; send less at once")


def check_content_type(request: Request, allowed: Sequence[str] = (JSON,)) -> None:
    """Refuse a body that does not say that it is JSON, or what else is allowed.

    A web page of another origin cannot send that without asking the browser first.
    """
    given = request.headers.get("content-type", "")
    media_type, _, parameters = given.partition(";")
    charset = parameters.lower().partition("charset=")[2].strip(' "')
    if media_type.strip().lower() not in allowed or charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMediaTypeError(
            f"Content-Type is {given!r}: send Content-Type: {' or '.join(allowed)}, in UTF-8"
        )


async def read_json(request: Request, allowed: Sequence[str] = (JSON,)) -> JsonValue:
    """Any JSON value; NaN, infinity and broken UTF-8 are refused."""
    check_content_type(request, allowed)
    body = await read_body(request)
    try:
        value: JsonValue = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"invalid JSON: {error}", code="invalid_json") from error
    return value


def json_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that reads the body as `model`."""

    async def parse(request: Request) -> Model:
        check_content_type(request)
        body = await read_body(request)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise validation_error(error.errors(include_url=False)) from None

    return parse
