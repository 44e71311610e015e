"""A real server on a loopback port, in a thread of this process."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from server.commands.serve import DrainingServer
from server.settings import Settings
from tests.server.api.scripted import ScriptedEngine

PATIENCE = 20.0


class LiveServer:
    """A running server, its engine, and a way onto its event loop."""

    def __init__(self, server: DrainingServer, thread: threading.Thread, engine: object) -> None:
        self.server = server
        self.thread = thread
        self.engine: ScriptedEngine = engine  # type: ignore[assignment]
        self.url = server.url

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the event loop's thread, and wait for it."""
        done = threading.Event()

        def run() -> None:
            function(*arguments)
            done.set()

        assert self.server._loop is not None
        self.server._loop.call_soon_threadsafe(run)
        assert done.wait(PATIENCE)

    def drain(self) -> None:
        """Begin to drain, as SIGTERM does."""
        self.call(self.server.drain)

    def join(self) -> int:
        """Wait for the end; return the exit code."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.server.exit_code


@contextmanager
def listening(app: FastAPI, engine: ScriptedEngine, **settings: object) -> Iterator[LiveServer]:
    """Run a server until the end of the block."""
    options = Settings(port=0, **{"shutdown_timeout": 0.1, **settings})  # type: ignore[arg-type]
    server = DrainingServer(app, options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    wait_until(lambda: server.started and app.state.lifecycle._service is not None)
    live = LiveServer(server, thread, engine)
    try:
        yield live
    finally:
        if thread.is_alive():
            live.drain()
            live.join()


def wait_until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
