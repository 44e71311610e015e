"""The engine's thread, and streams of its outputs for asyncio."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from queue import SimpleQueue

import torch

from server.engine.config import EngineConfig
from server.engine.engine import Engine
from server.engine.group import Group
from server.engine.request import Output, Request
from server.errors import InvalidRequestError, QueueFullError, UnavailableError

logger = logging.getLogger(__name__)


class Stream:
    """The outputs of one request. It ends after the output that has a finish reason."""

    def __init__(self, cancel: Callable[["Stream"], None], *, is_background: bool = False) -> None:
        self.is_background = is_background
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()
        self._cancel = cancel
        self.finished = False

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Outputs in order; those of a slow reader pile up here, in memory bounded by its
        `max_tokens`.
        """
        while True:
            output = await self._outputs.get()
            yield output
            if output.finish_reason is not None:
                return

    def put(self, output: Output) -> None:
        """Deliver an output; on the event loop's thread."""
        self.finished = output.finish_reason is not None
        self._outputs.put_nowait(output)

    def cancel(self) -> None:
        """Free the rows by the next step. Harmless after the end, and when called twice."""
        if not self.finished:
            self.finished = True
            self._cancel(self)


class AsyncEngine:
    """Runs an `Engine` on a thread of its own. All methods belong to one event loop's thread."""

    def __init__(self, engine: Engine, *, num_threads: int | None = None) -> None:
        self.engine = engine
        self.error: str | None = None
        self._num_threads = num_threads
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[Stream] = set()
        self._accepting = True
        self._idle = asyncio.Event()
        self._idle.set()
        # on the engine's thread
        self._groups: dict[Stream, Group] = {}
        self._streams: dict[Group, Stream] = {}

    @property
    def config(self) -> EngineConfig:
        """The engine's limits."""
        return self.engine.config

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def num_background(self) -> int:
        """Those of them that are of background priority."""
        return sum(stream.is_background for stream in self._open)

    def start(self) -> None:
        """Start the thread; outputs are delivered to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> list[Stream]:
        """Queue requests, all or none, and return their streams.

        Raises `InvalidRequestError` for one that can never run, `QueueFullError`, and
        `UnavailableError` while draining.
        """
        if self.error is not None or not self._accepting:
            raise UnavailableError(self.error or "the server is shutting down")
        for request in requests:
            check_request(request, self.config)
        self._check_queue(requests)
        streams = [
            Stream(self._cancel, is_background=request.priority == "background")
            for request in requests
        ]
        self._open.update(streams)
        self._idle.clear()
        for stream, request in zip(streams, requests, strict=True):
            self._inbox.put(lambda stream=stream, request=request: self._add(stream, request))  # type: ignore[misc]
        return streams

    async def drain(self, timeout: float | None) -> None:
        """Accept nothing more, let what runs end, and abort the rest after `timeout` seconds."""
        self._accepting = False
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            self._fail_open("the server shut down")

    async def stop(self) -> None:
        """End the thread; open streams get an error."""
        await self.drain(0)
        self._inbox.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _check_queue(self, requests: Sequence[Request]) -> None:
        """Refuse what would make more than `max_queued` requests wait beside those that fill the
        rows. Live and background requests are counted apart: neither takes the other's places.
        """
        limit = self.config.max_rows + self.config.max_queued
        num_rows = sum(len(request.members) for request in requests)
        if num_rows > limit:
            raise InvalidRequestError(
                f"{len(requests)} prompts and choices in one request, of {num_rows} rows in all; "
                f"this server takes {limit} rows (--max-rows and --max-queued)"
            )
        num_background = sum(request.priority == "background" for request in requests)
        num_live = self.num_open - self.num_background
        for what, num_open, num_new in (
            ("requests", num_live, len(requests) - num_background),
            ("background requests", self.num_background, num_background),
        ):
            if num_new > 0 and num_open + num_new > limit:
                raise QueueFullError(
                    f"{num_open} {what} are open and at most {self.config.max_queued} may wait; "
                    "try again later, or raise --max-queued"
                )

    def _cancel(self, stream: Stream) -> None:
        self._close(stream)
        self._inbox.put(lambda: self._abort(stream))

    def _close(self, stream: Stream) -> None:
        self._open.discard(stream)
        if not self._open:
            self._idle.set()

    def _deliver(self, outputs: list[tuple[Stream, Output]]) -> None:
        """On the event loop's thread: hand outputs to their streams."""
        for stream, output in outputs:
            if stream in self._open:
                stream.put(output)
                if stream.finished:
                    self._close(stream)

    def _fail(self, message: str) -> None:
        self.error = message
        self._fail_open(message)

    def _fail_open(self, message: str) -> None:
        for stream in list(self._open):
            stream.put(Output("", (), finish_reason="error", error=message))
            self._cancel(stream)

    # The rest runs on the engine's thread.

    def _run(self) -> None:
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)  # OpenMP counts threads per calling thread
        try:
            while self._receive():
                if self.engine.scheduler.has_work:
                    self._post(self._step())
        except Exception as error:
            logger.exception("the engine has stopped")
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._fail, f"the engine has stopped: {error!r}")

    def _receive(self) -> bool:
        """Do what was asked since the last step; wait when there is nothing else to do. False means
        stop.
        """
        while not self._inbox.empty() or not self.engine.scheduler.has_work:
            action = self._inbox.get()
            if action is None:
                return False
            action()
        return True

    def _step(self) -> list[tuple[Stream, Output]]:
        outputs = []
        for group, output in self.engine.step():
            stream = self._streams[group]
            outputs.append((stream, output))
            if output.finish_reason is not None:
                del self._streams[group], self._groups[stream]
        return outputs

    def _post(self, outputs: list[tuple[Stream, Output]]) -> None:
        assert self._loop is not None
        if outputs and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _add(self, stream: Stream, request: Request) -> None:
        try:
            group = self.engine.add(request)
        except Exception:
            logger.exception("a request could not be queued")
            failed = Output("", (), finish_reason="error", error="the request could not be queued")
            self._post([(stream, failed)])
            return
        self._groups[stream], self._streams[group] = group, stream

    def _abort(self, stream: Stream) -> None:
        group = self._groups.pop(stream, None)
        if group is not None:
            del self._streams[group]
            self.engine.abort(group)


def check_request(request: Request, config: EngineConfig) -> None:
    """Raise `InvalidRequestError` if the request can never run within the engine's limits."""
    num_rows = len(request.members)
    if num_rows > config.max_rows:
        raise InvalidRequestError(
            f"an ensemble of {num_rows} rows cannot run: the server has {config.max_rows} "
            "(--max-rows)"
        )
    longest = max(len(member.prompt) for member in request.members)
    if min(len(member.prompt) for member in request.members) == 0:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    room = config.max_model_len - (1 if request.sampling.max_tokens > 0 else 0)
    if longest > room:
        raise InvalidRequestError(
            f"the prompt has {longest} tokens, and this server's maximum context length is "
            f"{config.max_model_len} tokens, the answer included",
            param="prompt",
            code="context_length_exceeded",
        )
    total = min(longest + request.sampling.max_tokens, config.max_model_len)
    if num_rows * -(-total // config.block_size) > config.num_blocks:
        raise InvalidRequestError(
            f"{num_rows} rows of {total} tokens do not fit the KV cache of "
            f"{config.num_blocks * config.block_size} tokens (--kv-memory)"
        )
