"""`mergeserve serve`: listen at once, load, serve, and drain when told to stop."""

import argparse
import asyncio
import gc
import logging
import os
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.api.lifecycle import Lifecycle
from server.api.service import Service
from server.app import create_app, load_service
from server.commands.greeting import greet
from server.commands.logs import configure_logging
from server.commands.progress import ProgressReporter
from server.metrics import Metrics
from server.settings import Settings

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75


class DrainingServer(uvicorn.Server):
    """A uvicorn server that goes on answering while it drains: 503 to what is new.

    The first SIGTERM or SIGINT begins to drain, a second one ends the server at once.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ws="none",
            lifespan="on",
        )
        super().__init__(config)
        lifecycle = app.state.lifecycle
        assert isinstance(lifecycle, Lifecycle)
        self._lifecycle = lifecycle
        self._lifecycle.on_failure = self._give_up
        self._lifecycle.on_ready = self._greet
        self._needs_key = bool(settings.api_key)
        self._served: Service | None = None
        self._shutdown_timeout = settings.shutdown_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def exit_code(self) -> int:
        """0 after a shutdown that was asked for, 1 if the service could not start."""
        return 0 if self._lifecycle.failure is None else 1

    @property
    def is_loading(self) -> bool:
        """Whether the loading thread still runs."""
        return self._lifecycle.is_loading

    @property
    def url(self) -> str:
        """Where the server listens."""
        address, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            logger.info("listening on %s; the model is being loaded", self.url)
            self._greet_once()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second; the exit code stays ours."""
        if self._loop is None or self._draining is not None or self.should_exit:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Begin to drain; on the event loop's thread."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        logger.info("shutting down: running requests get %g s to finish", self._shutdown_timeout)
        deadline = asyncio.get_running_loop().time() + self._shutdown_timeout
        await self._lifecycle.drain(self._shutdown_timeout)
        left = max(1.0, deadline - asyncio.get_running_loop().time())
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # any number will do
        self.should_exit = True

    def _greet(self, service: Service) -> None:
        self._served = service
        self._greet_once()

    def _greet_once(self) -> None:
        """Greet when there is both an address and a service; a tiny model is there first."""
        if self.started and self._served is not None:
            greet(self._served, self.url, needs_key=self._needs_key)

    def _give_up(self) -> None:
        self.should_exit = True


def load(settings: Settings, metrics: Metrics) -> Service:
    """Load the service, and spare what it consists of the garbage collector: a full collection
    would stop every request for the third of a second that it takes to look at all of it.
    """
    service = load_service(settings, metrics, progress=ProgressReporter())
    gc.collect()
    gc.freeze()
    return service


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    settings: Settings = arguments.settings
    configure_logging(settings.log_format)
    server = DrainingServer(create_app(settings, load=load), settings)
    try:
        server.run()
        code = server.exit_code
    except SystemExit:  # uvicorn's, when it cannot listen; it has logged why
        code = 1
    if server.is_loading:  # its thread cannot be stopped, and nobody waits for it
        logging.shutdown()
        os._exit(code)
    return code
