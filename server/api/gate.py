"""While the server loads or drains, only its health can be asked for."""

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.auth import METRICS_PATH, OPEN_PATHS
from server.api.errors import error_response
from server.api.lifecycle import Lifecycle
from server.errors import UnavailableError


class Gate:
    """Answers 503 with Retry-After for everything that needs a model that serves."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in (*OPEN_PATHS, METRICS_PATH):
            try:
                self._lifecycle.check_serving()
            except UnavailableError as error:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
