"""From the first listening socket to the last answer: loading, serving, draining."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from merging.errors import MergingError
from server.api.service import Service
from server.demo import DemoError
from server.engine.errors import EngineError
from server.errors import ServiceError, UnavailableError

logger = logging.getLogger(__name__)

USER_MISTAKES = (DemoError, EngineError, MergingError, ServiceError)
LOADING_RETRY_SECONDS = 5


class Lifecycle:
    """Loads the service on a thread of its own, and says what may be done when.

    All methods belong to the event loop's thread. `on_failure` is called when loading failed,
    and `on_ready` once requests are served.
    """

    def __init__(self, load: Callable[[], Service]) -> None:
        self._load = load
        self._service: Service | None = None
        self._loading: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: str | None = None
        self.is_draining = False
        self.on_failure: Callable[[], None] = lambda: None
        self.on_ready: Callable[[Service], None] = lambda service: None

    @property
    def service(self) -> Service:
        """The loaded service; UnavailableError before, and when it cannot be used any more."""
        self.check_serving()
        assert self._service is not None
        return self._service

    @property
    def is_loading(self) -> bool:
        """Whether the model is still being loaded."""
        return self._loading is not None and self._loading.is_alive()

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits."""
        return self._service is None or self._service.engine.num_open == 0

    @property
    def engine_error(self) -> str | None:
        """Why the engine died, if it did."""
        return None if self._service is None else self._service.engine.error

    def check_serving(self) -> None:
        """Raise UnavailableError unless requests can be served."""
        if self.is_draining:
            raise UnavailableError("the server is shutting down", code="draining")
        if self.failure is not None:
            raise UnavailableError(f"the server could not start: {self.failure}", code="failed")
        if self._service is None:
            raise UnavailableError(
                "the model is still being loaded", retry_after=LOADING_RETRY_SECONDS, code="loading"
            )
        if self.engine_error is not None:
            raise UnavailableError(self.engine_error, code="failed")

    def start(self) -> None:
        """Begin to load."""
        self._loop = asyncio.get_running_loop()
        # A daemon: a process that is told to stop does not wait for a model that nobody will use.
        self._loading = threading.Thread(target=self._run_load, name="load", daemon=True)
        self._loading.start()

    async def drain(self, timeout: float | None) -> None:
        """Refuse what is new and let what runs finish, for at most `timeout` seconds."""
        self.is_draining = True
        if self._service is not None:
            for work in (self._service.fidelity, self._service.trials):
                if work is not None:
                    work.close()  # nobody waits for it
            await self._service.engine.drain(timeout)

    async def stop(self) -> None:
        """End the engine's thread and close the catalog."""
        await self.drain(0)
        if self._service is not None:
            await self._service.engine.stop()
            await run_in_threadpool(self._service.close)

    def _run_load(self) -> None:
        try:
            service = self._load()
        except USER_MISTAKES as error:
            self._call(self._fail, str(error))
        except Exception:
            logger.exception("loading failed")
            self._call(self._fail, "loading failed for an internal error; the log says which")
        else:
            self._call(self._serve, service)

    def _call(self, report: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(report, *arguments)
        except RuntimeError:  # the loop is closed: the server stopped while it was loading
            logger.debug("loading ended after the server")

    def _serve(self, service: Service) -> None:
        if not self.is_draining:
            service.engine.start()
            self._service = service
            if service.trials is not None:
                service.trials.start()
            self.on_ready(service)

    def _fail(self, message: str) -> None:
        self.failure = message
        logger.error("the server could not start: %s", message)
        self.on_failure()


async def current_lifecycle(request: Request) -> Lifecycle:
    """The lifecycle of the application that serves this request."""
    lifecycle = request.app.state.lifecycle
    assert isinstance(lifecycle, Lifecycle)
    return lifecycle


async def current_service(request: Request) -> Service:
    """The service of the application that serves this request."""
    return (await current_lifecycle(request)).service


LifecycleDep = Annotated[Lifecycle, Depends(current_lifecycle)]
ServiceDep = Annotated[Service, Depends(current_service)]
