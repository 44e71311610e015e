"""Streams over the engine's thread: order, cancellation, refusal, draining, failure."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from server.engine.async_engine import AsyncEngine, Stream
from server.engine.request import Member, Output, Request, SamplingParams
from server.errors import InvalidRequestError, QueueFullError, UnavailableError
from tests.server.engine.conftest import Bench, naive_greedy, random_prompt


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[AsyncEngine]:
    """The bench's engine on its thread."""
    engine = AsyncEngine(bench.engine, num_threads=1)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def request(bench: Bench, length: int = 9, seed: int = 0, **sampling: object) -> Request:
    """A greedy request."""
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **sampling})  # type: ignore[arg-type]
    return Request((Member(random_prompt(length, seed), bench.empty),), params)


async def read(stream: Stream) -> list[Output]:
    """All outputs of a stream."""
    return [output async for output in stream]


def tokens(outputs: list[Output]) -> list[int]:
    """The sampled tokens of a stream."""
    return [token.token_id for output in outputs for token in output.tokens]


def with_engine(bench: Bench, body: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run `body` with a running engine, and check the books afterwards."""

    async def main() -> None:
        async with running(bench) as engine:
            await asyncio.wait_for(body(engine), 60)

    asyncio.run(main())


def test_streams_give_their_own_tokens_in_order(bench: Bench) -> None:
    """Concurrent streams each get naive greedy's tokens, one output a token, the last with a finish
    reason.
    """

    async def body(engine: AsyncEngine) -> None:
        requests = [request(bench, 5 + i, seed=i) for i in range(6)]
        results = await asyncio.gather(*map(read, engine.submit(requests)))
        model = bench.merged(bench.empty)
        for asked, outputs in zip(requests, results, strict=True):
            assert naive_greedy(model, asked.members[0].prompt, 12) == tokens(outputs)
            assert outputs[-1].finish_reason == "length"
            assert all(output.finish_reason is None for output in outputs[:-1])

    with_engine(bench, body)


def test_the_first_token_comes_before_the_last_is_computed(bench: Bench) -> None:
    """A stream yields its first output while the request is still running."""

    async def body(engine: AsyncEngine) -> None:
        (stream,) = engine.submit([request(bench, max_tokens=120)])
        await anext(aiter(stream))
        assert engine.num_open == 1

    with_engine(bench, body)


def test_cancelling_frees_the_rows(bench: Bench) -> None:
    """After a cancel the group is gone from the scheduler within a step or two, and cancelling
    again does nothing.
    """

    async def body(engine: AsyncEngine) -> None:
        (stream,) = engine.submit([request(bench, max_tokens=200)])
        await anext(aiter(stream))
        stream.cancel()
        stream.cancel()
        assert engine.num_open == 0
        (other,) = engine.submit([request(bench, max_tokens=3)])
        await read(other)
        assert not engine.engine.scheduler.has_work

    with_engine(bench, body)


def test_a_full_queue_refuses_all_or_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What does not fit beside rows and queue is refused as a whole, and the accepted requests
    finish.
    """
    from tests.server.engine.conftest import make_bench

    bench = make_bench(tmp_path, max_rows=2, max_queued=2)

    async def body(engine: AsyncEngine) -> None:
        streams = engine.submit([request(bench, max_tokens=30) for _ in range(3)])
        with pytest.raises(QueueFullError, match="--max-queued"):
            engine.submit([request(bench) for _ in range(2)])
        assert engine.num_open == 3
        streams += engine.submit([request(bench)])
        for outputs in await asyncio.gather(*map(read, streams)):
            assert outputs[-1].finish_reason == "length"
        with pytest.raises(InvalidRequestError, match="5 prompts"):
            engine.submit([request(bench) for _ in range(5)])
        one = request(bench)
        pair = replace(one, members=one.members * 2, rule=lambda logits: logits[0])
        with pytest.raises(InvalidRequestError, match="of 6 rows in all"):
            engine.submit([pair] * 3)

    with_engine(bench, body)


def test_background_requests_take_no_live_places(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A queue full of background requests refuses more of them, and no live ones; all finish."""
    from tests.server.engine.conftest import make_bench

    bench = make_bench(tmp_path, max_rows=2, max_queued=2)

    async def body(engine: AsyncEngine) -> None:
        slow = [replace(request(bench, max_tokens=40), priority="background") for _ in range(4)]
        streams = engine.submit(slow)
        assert (engine.num_open, engine.num_background) == (4, 4)
        with pytest.raises(QueueFullError, match="background"):
            engine.submit(slow[:1])
        streams += engine.submit([request(bench, max_tokens=5) for _ in range(4)])
        with pytest.raises(QueueFullError, match="4 requests"):
            engine.submit([request(bench)])
        results = await asyncio.gather(*map(read, streams))
        assert [len(tokens(outputs)) for outputs in results] == [40] * 4 + [5] * 4

    with_engine(bench, body)


@pytest.mark.parametrize(
    ("length", "sampling", "message"),
    [(0, {}, "empty"), (256, {}, "256 tokens"), (300, {"max_tokens": 0}, "context length")],
)
def test_requests_that_can_never_run_are_refused(
    bench: Bench, length: int, sampling: dict[str, object], message: str
) -> None:
    """Empty prompts and prompts longer than the context are refused before anything is queued."""

    async def body(engine: AsyncEngine) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            engine.submit([request(bench), request(bench, length, **sampling)])
        assert engine.num_open == 0

    with_engine(bench, body)


def test_a_prompt_of_the_whole_context_can_be_scored(bench: Bench) -> None:
    """With `max_tokens` 0 the prompt may fill the context."""

    async def body(engine: AsyncEngine) -> None:
        (stream,) = engine.submit([request(bench, 256, max_tokens=0, prompt_logprobs=0)])
        (output,) = await read(stream)
        assert output.prompt is not None
        assert len(output.prompt) == 256

    with_engine(bench, body)


def test_draining_finishes_what_runs(bench: Bench) -> None:
    """A drain refuses newcomers and lets open streams end by themselves."""

    async def body(engine: AsyncEngine) -> None:
        (stream,) = engine.submit([request(bench, max_tokens=40)])
        reading = asyncio.create_task(read(stream))
        drain = asyncio.create_task(engine.drain(None))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="shutting down"):
            engine.submit([request(bench)])
        await drain
        assert len(tokens(await reading)) == 40

    with_engine(bench, body)


def test_a_drain_that_takes_too_long_ends_streams_with_an_error(bench: Bench) -> None:
    """After the timeout every open stream gets an error, not silence."""

    async def body(engine: AsyncEngine) -> None:
        (stream,) = engine.submit([request(bench, max_tokens=240)])
        reading = asyncio.create_task(read(stream))
        await engine.drain(0.001)
        last = (await reading)[-1]
        assert (last.finish_reason, last.error) == ("error", "the server shut down")

    with_engine(bench, body)


def test_a_failed_step_fails_its_requests_and_no_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a forward ends that step's streams with an error that hides it; later
    requests work.
    """

    async def body(engine: AsyncEngine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bench.engine._runner, "forward", lambda work: 1 / 0)
            (stream,) = engine.submit([request(bench)])
            (output,) = await read(stream)
        assert output.finish_reason == "error"
        assert "division" not in str(output.error)
        (stream,) = engine.submit([request(bench)])
        assert len(tokens(await read(stream))) == 12

    with_engine(bench, body)
    assert "ZeroDivisionError" in caplog.text


def test_a_dead_engine_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: object
) -> None:
    """If the engine's thread dies, open streams get an error and new requests are refused."""

    async def body(engine: AsyncEngine) -> None:
        monkeypatch.setattr(bench.engine, "step", lambda: 1 / 0)
        (stream,) = engine.submit([request(bench)])
        (output,) = await read(stream)
        assert output.finish_reason == "error"
        with pytest.raises(UnavailableError, match="stopped"):
            engine.submit([request(bench)])

    with_engine(bench, body)
    bench.engine.scheduler.finish(bench.engine.scheduler.waiting[0])
