"""Every error in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import InvalidRequestError, NotFoundError, RetryLaterError, ServiceError

logger = logging.getLogger(__name__)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
EXCERPT_LEN = 80
MAX_REPORTED = 8


class MethodNotAllowedError(ServiceError):
    """The path exists, but not for this method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class UnsupportedMediaTypeError(ServiceError):
    """The body is of a content type that the route does not take."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class EngineFailedError(ServiceError):
    """The engine gave up on a request that it had accepted."""

    code = "engine_error"


class RequestTimeoutError(RetryLaterError):
    """A request took longer than `--request-timeout`."""

    status, type, code = 503, "server_error", "request_timeout"


class ErrorDetail(BaseModel):
    """What went wrong, and which field is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


def error_body(error: ServiceError) -> ErrorBody:
    """The body that tells a caller of `error`."""
    detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
    return ErrorBody(error=detail)


class ErrorResponse(Response):
    """The answer that tells of an error, which leaves its reason for the log in the scope."""

    def __init__(self, *arguments: Any, logged: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._logged = logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope.setdefault("state", {})["reason"] = self._logged
        await super().__call__(scope, receive, send)


def error_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """The response that tells a caller of `error`."""
    all_headers = dict(headers or {})
    if isinstance(error, RetryLaterError):
        all_headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    return ErrorResponse(
        error_body(error).model_dump_json(ensure_ascii=True),
        logged=error.logged,
        status_code=error.status,
        headers=all_headers,
        media_type="application/json",
    )


def internal_error() -> ServiceError:
    """What a caller is told of a mistake of ours: nothing but that the log has it."""
    return ServiceError("internal error; the server's log says more", code="internal_error")


def validation_error(details: Sequence[ErrorDetails]) -> InvalidRequestError:
    """One error that names every field that is wrong, with its value."""
    assert details
    paths = [field_path(detail["loc"]) or _blamed(detail) for detail in details]
    reported = list(zip(paths, details, strict=True))[:MAX_REPORTED]
    reasons = [f"{path or 'the body'}: {_reason(detail)}" for path, detail in reported]
    values = [_got(detail) for _, detail in reported]
    return InvalidRequestError(
        "; ".join(f"{reason}{got}" for reason, got in zip(reasons, values, strict=True)),
        param=paths[0] or None,
        code=_code(details[0]),
        logged="; ".join(reasons),
    )


def field_path(location: Sequence[str | int]) -> str:
    """`messages[0].content` for ("messages", 0, "content")."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            path += f".{part}" if path else part
    return path


def _blamed(detail: ErrorDetails) -> str:
    """The field that a check of several fields blames."""
    return str(detail.get("ctx", {}).get("param") or "")


def excerpt(value: object) -> str:
    """A value as a message can show it."""
    text = repr(value)
    return text if len(text) <= EXCERPT_LEN else f"{text[:EXCERPT_LEN]}…"


def _reason(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return "unknown field"
    if kind == "missing":
        return "is missing"
    if kind in ("json_invalid", "unsupported", "refused"):
        return detail["msg"]
    return detail["msg"].removeprefix("Input ").removeprefix("Value error, ")


def _got(detail: ErrorDetails) -> str:
    """The value, where the reason does not tell all."""
    if detail["type"] in ("extra_forbidden", "missing", "json_invalid", "unsupported", "refused"):
        return ""
    return f", got {excerpt(detail['input'])}"


def _code(detail: ErrorDetails) -> str:
    codes = {
        "extra_forbidden": "unknown_parameter",
        "missing": "missing_required_parameter",
        "unsupported": "unsupported_parameter",
        "json_invalid": "invalid_json",
    }
    kind = detail["type"]
    return codes.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")


async def on_service_error(request: Request, error: Exception) -> Response:
    """Answer an error that was raised for the caller."""
    assert isinstance(error, ServiceError)
    return error_response(error)


async def on_template_error(request: Request, error: Exception) -> Response:
    """Answer messages that the chat template refuses."""
    message = f"the chat template refuses these messages: {error}"
    logged = "the chat template refuses these messages"
    return error_response(InvalidRequestError(message, param="messages", logged=logged))


async def on_invalid_parameters(request: Request, error: Exception) -> Response:
    """Answer a path or query parameter of the wrong type."""
    assert isinstance(error, RequestValidationError)
    details = [{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]
    return error_response(validation_error(details))  # type: ignore[arg-type]


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: an unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = allowed_methods(request)
        message = f"{request.method} is not allowed here; use {', '.join(allowed)}"
        return error_response(MethodNotAllowedError(message), {"Allow": ", ".join(allowed)})
    if error.status_code == 404:
        message = f"there is no {request.method} {request.url.path}"
        return error_response(NotFoundError(message, code="unknown_url"))
    return error_response(InvalidRequestError(str(error.detail)))


def allowed_methods(request: Request) -> list[str]:
    """The methods that the request's path has. (A router knows only its first match's.)"""
    routes = request.app.routes
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ]


class ErrorBoundary:
    """Turns what nobody expected into a 500; the traceback is in the log, not in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application below."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def noting_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if has_started:
                raise  # the server cuts the connection, so that the caller sees a broken answer
            await error_response(internal_error())(scope, receive, send)
