"""Server-sent events: a stream of JSON objects, ended by `[DONE]`."""

from collections.abc import AsyncGenerator, Callable, Mapping

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.disconnect import unless_disconnected
from server.api.responses import to_json

DONE = b"data: [DONE]\n\n"


def frame(model: BaseModel) -> bytes:
    """One event."""
    return event(to_json(model, ascii_only=True))


def event(json: bytes) -> bytes:
    """One event of JSON that is ASCII only, so that no character ends its line."""
    return b"data: " + json + b"\n\n"


class EventStream(Response):
    """Sends frames as they come. `close` is called at the end, also when the client goes away."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[], None],
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        self._frames = frames
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await unless_disconnected(receive, self._send(send))
        finally:
            self._close()
            await self._frames.aclose()

    async def _send(self, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        async for chunk in self._frames:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
