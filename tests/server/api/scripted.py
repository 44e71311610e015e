"""An application over a scripted engine: tests say what it emits, and look at what it was asked."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio.from_thread
import httpx
from fastapi import FastAPI

from server.api.service import Service
from server.app import create_app
from server.engine.async_engine import Stream, check_request
from server.engine.config import EngineConfig
from server.engine.request import Output, Request, TokenLogprobs
from server.engine.tokenizer import Tokenizer
from server.errors import UnavailableError
from server.metrics import Metrics
from server.presets.catalog import Catalog
from server.settings import Settings
from tests.tokenizers import CHAT_TEMPLATE, byte_tokenizer

EOS = 2
VOCAB_SIZE = 259
CONFIG = EngineConfig(max_model_len=128, num_blocks=64, block_size=16, max_rows=8, max_queued=8)

Script = Callable[[Request], Sequence[Output]]


def tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    """One token a byte: byte `b` is some id from 3 to 258."""
    return Tokenizer(
        byte_tokenizer(chat_template), vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({EOS})
    )


_SHARED = tokenizer()  # making one takes milliseconds


def ids(text: str) -> tuple[int, ...]:
    """Token ids of a text."""
    return tuple(_SHARED.encode(text))


def report(token_id: int, logprobs: int | None, position: int = 0) -> TokenLogprobs:
    """A token whose log-probability is -0.5 and whose alternatives are the ids after it."""
    if logprobs is None:
        return TokenLogprobs(token_id)
    top = tuple((token_id + rank, -0.5 - rank) for rank in range(logprobs))
    return TokenLogprobs(token_id, None if position < 0 else -0.5, () if position < 0 else top)


def says(text: str, *, num_cached_tokens: int = 0) -> Script:
    """Emit `text` byte by byte up to `max_tokens`, then stop."""

    def script(request: Request) -> list[Output]:
        sampling = request.sampling
        wanted = ids(text)
        given = wanted[: sampling.max_tokens]
        prompt = None
        if sampling.prompt_logprobs is not None:
            prompt = tuple(
                report(token_id, sampling.prompt_logprobs, position - 1)
                for position, token_id in enumerate(request.members[0].prompt)
            )
        outputs = [
            Output(
                text=_SHARED.decode([token_id]),
                tokens=(report(token_id, sampling.logprobs),),
                num_cached_tokens=num_cached_tokens,
                prompt=prompt if index == 0 else None,
                finish_reason="length" if index + 1 == sampling.max_tokens else None,
            )
            for index, token_id in enumerate(given)
        ]
        if not outputs or outputs[-1].finish_reason is None:
            done = sampling.max_tokens == 0
            outputs.append(
                Output(
                    text="",
                    tokens=() if done else (report(EOS, sampling.logprobs),),
                    num_cached_tokens=num_cached_tokens,
                    prompt=None if outputs else prompt,
                    finish_reason="length" if done else "stop",
                )
            )
        return outputs

    return script


def silent(request: Request) -> list[Output]:
    """Emit nothing: the test will."""
    return []


def breaks(*before: Output) -> Script:
    """Emit some outputs, then fail."""
    return lambda request: [*before, Output("", (), finish_reason="error", error="it broke")]


def piece(text: str, finish_reason: str | None = None) -> Output:
    """An output of one token."""
    return Output(text, (report(5, None),), finish_reason=finish_reason)  # type: ignore[arg-type]


class ScriptedEngine:
    """Stands in for AsyncEngine."""

    def __init__(self, config: EngineConfig = CONFIG) -> None:
        self.config = config
        self.script: Script = says("ok")
        self.error: str | None = None
        self.refusal: Exception | None = None
        self.requests: list[Request] = []
        self.streams: list[Stream] = []
        self.cancelled: set[int] = set()
        self._accepting = True

    @property
    def num_open(self) -> int:
        """Streams that have not ended."""
        return sum(not stream.finished for stream in self.streams)

    @property
    def num_background(self) -> int:
        """Those of background priority."""
        return sum(stream.is_background and not stream.finished for stream in self.streams)

    def start(self) -> None:
        """Nothing to start."""

    def submit(self, requests: Sequence[Request]) -> list[Stream]:
        """Note the requests, and emit what the script says."""
        if not self._accepting:
            raise UnavailableError("the server is shutting down")
        if self.refusal is not None:
            raise self.refusal
        for request in requests:
            check_request(request, self.config)
        streams = []
        for request in requests:
            index = len(self.streams)
            stream = Stream(
                lambda _, index=index: self.cancelled.add(index),
                is_background=request.priority == "background",
            )
            self.requests.append(request)
            self.streams.append(stream)
            for output in self.script(request):
                stream.put(output)
            streams.append(stream)
        return streams

    def emit(self, index: int, *outputs: Output) -> None:
        """Deliver outputs to a stream; on the event loop's thread."""
        for output in outputs:
            self.streams[index].put(output)

    async def drain(self, timeout: float | None) -> None:
        """Wait for what runs; abort it after the timeout."""
        self._accepting = False
        try:
            async with asyncio.timeout(timeout):
                while not all(stream.finished for stream in self.streams):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            for stream in self.streams:
                if not stream.finished:
                    stream.put(Output("", (), finish_reason="error", error="the server shut down"))

    async def stop(self) -> None:
        """End."""
        await self.drain(0)


class Harness:
    """An application that runs in this process, and a client that calls it directly."""

    def __init__(self, app: FastAPI, engine: ScriptedEngine, portal: object) -> None:
        self.app = app
        self.engine = engine
        self._portal = portal

    def request(self, method: str, url: str, **options: object) -> httpx.Response:
        """Send one request and wait for the whole response."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, url, **options)  # type: ignore[arg-type]

        return self._portal.call(send)  # type: ignore[attr-defined, no-any-return]

    def get(self, url: str, **options: object) -> httpx.Response:
        """GET."""
        return self.request("GET", url, **options)

    def post(self, url: str, body: object = None, **options: object) -> httpx.Response:
        """POST, as JSON where there is a body."""
        if body is not None:
            options["json"] = body
        return self.request("POST", url, **options)

    def complete(self, **fields: object) -> httpx.Response:
        """POST /v1/completions."""
        return self.post("/v1/completions", {"model": "base", "prompt": "hi", **fields})

    def chat(self, *messages: str, **fields: object) -> httpx.Response:
        """POST /v1/chat/completions with messages of the user."""
        said = [{"role": "user", "content": text} for text in messages or ("hi",)]
        return self.post("/v1/chat/completions", {"model": "base", "messages": said, **fields})


def make_app(
    engine: ScriptedEngine,
    catalog: Catalog,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    **settings: object,
) -> FastAPI:
    """An application over `engine` and `catalog`."""
    options = Settings(**settings)  # type: ignore[arg-type]

    def load(settings: Settings, metrics: Metrics) -> Service:
        return Service(
            engine,  # type: ignore[arg-type]
            tokenizer(chat_template),
            catalog,
            settings.request_timeout,
            defaults=settings.sampling_defaults,
        )

    return create_app(options, load=load)


@contextmanager
def running(app: FastAPI, engine: ScriptedEngine) -> Iterator[Harness]:
    """Start the application, and wait until it is ready."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        harness = Harness(app, engine, portal)
        while harness.get("/readyz").json().get("error", {}).get("code") == "loading":
            portal.call(asyncio.sleep, 0.002)
        yield harness


def sse_events(body: str) -> list[str]:
    """The data of every event of a stream."""
    frames = [frame for frame in body.split("\n\n") if frame]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [frame.removeprefix("data: ") for frame in frames]
