"""What a comparison costs: its time against the same forwards alone, and what live requests feel.

    python -m bench.compare [--prompts 100] [--positions 64] [--seconds 15] [--phases 4]

The demo model in this process, without HTTP. First a comparison of a preset's merge with its
ensemble, and the very same requests again without a comparison's statistics: the ratio of the two
times. Then as many live streams as the engine has rows ask one thing after the other, while phases
with a comparison behind them and phases without alternate: the time to the first token of both.
"""

import argparse
import asyncio
import dataclasses
import random
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from bench.edits import p99
from scripts.demo_data import make_skills
from server.api.compare import Comparison, prepare
from server.api.compare_schemas import CompareBody
from server.api.service import Service
from server.app import load_service
from server.compare.at_once import at_once
from server.compare.run import NUM_READINGS
from server.engine.async_engine import Stream
from server.engine.block_manager import BlockManager
from server.engine.request import Member, Request, SamplingParams
from server.metrics import Metrics
from server.settings import Settings


class Recorder:
    """The engine, noting what it is asked."""

    def __init__(self, service: Service) -> None:
        self._engine = service.engine
        self.config = service.engine.config
        self.requests: list[Request] = []

    def submit(self, requests: Sequence[Request]) -> list[Stream]:
        """Note and pass on."""
        self.requests += requests
        return self._engine.submit(requests)


def body(preset: str, num_prompts: int, positions: int) -> CompareBody:
    """Prompts of two skills with their references; every answer has all its tokens."""
    skills = make_skills(num_held_out=num_prompts)
    examples = [skills[name].held_out[i] for i in range(num_prompts) for name in ("sql", "json")]
    chosen = examples[:num_prompts]
    return CompareBody.model_validate(
        {
            "messages": [[{"role": "user", "content": e.prompt}] for e in chosen],
            "references": [example.answer for example in chosen],
            "scorer": "exact",
            "max_tokens": positions,
            "ignore_eos": True,
            "candidates": [f"{preset}:ensemble", f"{preset}:merge"],
        }
    )


def forget(service: Service) -> None:
    """Empty the prefix cache, so that nothing is found that an earlier run has read."""
    scheduler = service.engine.engine.scheduler
    assert not scheduler.has_work
    scheduler.blocks = BlockManager(service.engine.config.num_blocks)


async def compared(service: Service, asked: CompareBody) -> tuple[float, list[Request], bytes]:
    """A whole comparison: seconds, what it asked of the engine, the result."""
    comparison = await prepare(service, asked)
    recorder = Recorder(service)
    background = dataclasses.replace(comparison.run.background, engine=recorder)
    run = dataclasses.replace(comparison.run, background=background)
    recorded = dataclasses.replace(comparison, run=run)
    started = time.perf_counter()
    await run.finish()
    result = await asyncio.to_thread(Comparison.result, recorded, streamed=False)
    return time.perf_counter() - started, recorder.requests, result


def read_nothing(begin: int, logits: torch.Tensor) -> None:
    """A reader that does no work."""


async def alone(service: Service, requests: Sequence[Request], concurrency: int) -> float:
    """Seconds that the same requests take, at the same concurrency, with nothing made of them."""

    async def send(request: Request) -> None:
        if request.reader is not None:
            request = dataclasses.replace(request, reader=read_nothing)
        (stream,) = service.engine.submit([request])
        async for _ in stream:
            pass

    readings = [request for request in requests if request.reader is not None]
    answers = [request for request in requests if request.reader is None]
    started = time.perf_counter()
    for mode in dict.fromkeys(request.mode for request in answers):
        own = [partial(send, request) for request in answers if request.mode == mode]
        await at_once(own, concurrency)
    await at_once([partial(send, request) for request in readings], NUM_READINGS)
    return time.perf_counter() - started


async def ratio(service: Service, options: argparse.Namespace) -> None:
    """Alternate both, and print the times."""
    asked = body(options.preset, options.prompts, options.positions)
    await compared(service, body(options.preset, 2, 8))  # everything is warm
    times: list[tuple[float, float]] = []
    for _ in range(options.repeats):
        forget(service)
        whole, requests, result = await compared(service, asked)
        forget(service)
        times.append((whole, await alone(service, requests, asked.concurrency)))
    whole, bare = (min(column) for column in zip(*times, strict=True))
    tokens = sum(len(m.prompt) for r in requests for m in r.members)
    print(
        f"{options.prompts} prompts x {options.positions} positions, {len(requests)} requests, "
        f"{tokens} prompt and text tokens, result {len(result) / 1e6:.1f} MB"
    )
    print(
        f"comparison {whole:.1f} s, forwards alone {bare:.1f} s: {whole / bare:.2f} x", flush=True
    )


async def live(service: Service, until: float, seed: int, times: list[float]) -> None:
    """One stream after the other, with prompts never seen before."""
    dice = random.Random(seed)
    weights = service.catalog.resolve("base").members[0].weights
    while time.perf_counter() < until:
        words = " ".join(str(dice.randrange(10**6)) for _ in range(6))
        prompt = tuple(service.tokenizer.encode(f"Numbers: {words}. Next:"))
        sampling = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
        started, first = time.perf_counter(), None
        (stream,) = service.engine.submit([Request((Member(prompt, weights, "base"),), sampling)])
        async for _ in stream:
            first = first or time.perf_counter()
        times.append((first or started) - started)


async def interference(service: Service, options: argparse.Namespace) -> None:
    """Phases with a comparison in the background and without."""
    times: dict[bool, list[float]] = {False: [], True: []}
    asked = body(options.preset, 100, options.positions)
    for phase in range(-1, options.phases):  # the first one warms up and does not count
        with_comparison = phase % 2 == 1 and phase > 0
        until = time.perf_counter() + options.seconds
        comparing = None
        if with_comparison:
            comparison = await prepare(service, asked)
            comparing = asyncio.ensure_future(comparison.run.finish())
        num_streams = service.engine.config.max_rows if options.streams is None else options.streams
        seeds = range((phase + 1) * 1000, (phase + 1) * 1000 + num_streams)
        await asyncio.gather(
            *(live(service, until, seed, times[with_comparison]) for seed in seeds)
        )
        if phase < 0:
            times[False].clear()
        if comparing is not None:
            comparing.cancel()
            await asyncio.gather(comparing, return_exceptions=True)
    for with_comparison, found in times.items():
        name = "with a comparison" if with_comparison else "alone            "
        found.sort()
        print(
            f"{num_streams} live streams {name}: first token median "
            f"{1000 * found[len(found) // 2]:.0f} ms, p99 {1000 * p99(found):.0f} ms, "
            f"{len(found)} requests",
            flush=True,
        )


async def run(options: argparse.Namespace) -> None:
    """Load, measure, stop."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            demo=True,
            dtype=options.dtype,
            max_rows=options.rows,
            num_threads=options.threads,
            database_url=f"sqlite:///{Path(folder) / 'compare.db'}",
        )
        service = load_service(settings, Metrics())
        service.engine.start()
        try:
            if not options.skip_ratio:
                await ratio(service, options)
            if options.phases:
                await interference(service, options)
        finally:
            await service.engine.stop()
            service.close()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="clerk")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--positions", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--streams", type=int, help="live streams; as many as rows if not given")
    parser.add_argument("--seconds", type=float, default=15.0, help="of one phase")
    parser.add_argument("--phases", type=int, default=4, help="0: only the ratio")
    parser.add_argument("--skip-ratio", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="bfloat16")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
