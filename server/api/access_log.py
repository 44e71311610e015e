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
        key = self._scope.get("state", {}).get("key")
        fields = {
            "method": method,
            "path": quote(path),
            "status": self._status,
            "seconds": round(time.perf_counter() - self._started, 4),
            "preset": self._preset,
            "key": key.name if key is not None else None,
            "request_id": self._request_id,
        }
        shown = [f"{name}={fields[name]}" for name in ("preset", "key") if fields[name]]
        text = " ".join([f"{method} {quote(path)} {self._status} {fields['seconds']:.3f}s", *shown])
        level = logging.DEBUG if path in QUIET_PATHS else logging.INFO
        logger.log(level, "%s", text, extra=fields)


def _known_method(method: str) -> str:
    """Methods are a label, so there must not be any number of them."""
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return method if method in known else "other"
