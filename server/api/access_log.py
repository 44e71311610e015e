"""One log line and one count for every request; never a word of what it says."""

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.answering import PRESET_HEADER
from server.api.auth import METRICS_PATH, OPEN_PATHS
from server.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
CLIENT_CLOSED = 499
"""Status in the log of a request whose client went away before it was answered; as in nginx."""

SHOWN = ("preset", "mode", "key", "request_id")
"""Fields that a line of text has beside method, path, status and seconds."""

MAX_REASON = 300  # characters

QUIET_PATHS = OPEN_PATHS | {METRICS_PATH}


class AccessLog:
    """Logs and counts requests, and gives each an id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = _Entry(scope)

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.note_response(message)
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        finally:
            entry.write(self._metrics)


class _Entry:
    """What the log says of one request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._started = time.perf_counter()
        self._status = CLIENT_CLOSED
        self._preset: str | None = None
        given = Headers(scope=scope).get(REQUEST_ID, "")
        is_usable = re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII)
        self._request_id = given if is_usable else uuid.uuid4().hex

    def note_response(self, message: Message) -> None:
        """Take down the status, and give the response the request's id."""
        headers = MutableHeaders(scope=message)
        headers[REQUEST_ID] = self._request_id
        self._status = message["status"]
        self._preset = headers.get(PRESET_HEADER)

    def write(self, metrics: Metrics) -> None:
        """Log and count the request."""
        method, path = self._scope["method"], self._scope["path"]
        route = getattr(self._scope.get("route"), "path", "unmatched")
        metrics.http_request(_known_method(method), route, self._status)
        state = self._scope.get("state", {})
        key = state.get("key")
        fields = {
            "method": method,
            "path": quote(path),
            "status": self._status,
            "seconds": round(time.perf_counter() - self._started, 4),
            "preset": state.get("preset") or self._preset,
            "mode": state.get("mode"),
            "key": key.name if key is not None else None,
            "request_id": self._request_id,
        }
        reason = state.get("reason") if self._status >= 400 else None
        shown = [f"{name}={fields[name]}" for name in SHOWN if fields[name]]
        text = " ".join([f"{method} {quote(path)} {self._status} {fields['seconds']:.3f}s", *shown])
        if reason is not None:
            fields["reason"] = _one_line(reason)
            text += f": {fields['reason']}"
        logger.log(_level(path, self._status), "%s", text, extra=fields)


def _level(path: str, status: int) -> int:
    if path in QUIET_PATHS:
        return logging.DEBUG
    return logging.WARNING if status >= 500 else logging.INFO


def _one_line(reason: str) -> str:
    """Without the value that it was given, which is the caller's business."""
    text = " ".join(reason.partition(", got ")[0].split())
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"


def _known_method(method: str) -> str:
    """Methods are a label, so there must not be any number of them."""
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return method if method in known else "other"
