"""A thousand edits of a preset under load: failures, mixed revisions, replays, and the time to the
first token.

    python -m bench.edits [--edits 1000] [--streams 16] [--url http://127.0.0.1:8000 --preset NAME]

Without --url it starts a server of its own: the demo model in float32, a database in a temporary
folder. While 16 streams run one request after the other, phases take turns: one in which nobody
else asks for anything, one with reads of the preset, one with as many edits, ten a second. So the
cost of an edit can be told from that of any small request, whose client shares the processor with
the server. Then every response is asked for again, of the revision that it named, in another order
and company. It exits with 1 unless no request failed, none came from two revisions, and each replay
gave the same text.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

EDITS_PER_PHASE = 50
PHASES = ("nothing", "reads", "edits")


@dataclass(frozen=True, slots=True)
class Response:
    """One finished stream."""

    prompt: str
    seed: int
    text: str
    revisions: frozenset[int]
    seconds_to_first: float
    phase: str


@dataclass(slots=True)
class Load:
    """What the streams and the editor share."""

    preset: str
    sources: tuple[str, str]
    num_edits: int
    max_tokens: int
    phase_seconds: float = 5.0
    phase: str = PHASES[0]
    max_seconds: float = float("inf")
    done: bool = False
    failures: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    edit_seconds: list[float] = field(default_factory=list)


async def read_stream(client: httpx.AsyncClient, load: Load, prompt: str, seed: int) -> Response:
    """One streamed completion."""
    body = {
        "model": load.preset,
        "prompt": prompt,
        "max_tokens": load.max_tokens,
        "temperature": 1.0,
        "seed": seed,
        "stream": True,
        "ignore_eos": True,
    }
    phase, started, first = load.phase, time.perf_counter(), None
    text, revisions = "", set()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code} {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            first = first or time.perf_counter()
            text += "".join(choice["text"] for choice in chunk["choices"])
            if "mergeserve" in chunk:
                revisions.add(chunk["mergeserve"]["revision"])
    assert first is not None
    return Response(prompt, seed, text, frozenset(revisions), first - started, phase)


async def stream_on(client: httpx.AsyncClient, load: Load, number: int) -> None:
    """Requests one after the other, with prompts never seen before, until the edits are done."""
    dice = random.Random(number)
    while not load.done:
        words = " ".join(str(dice.randrange(10**6)) for _ in range(6))
        try:
            load.responses.append(
                await read_stream(client, load, f"Numbers: {words}. Next:", dice.randrange(2**32))
            )
        except (httpx.HTTPError, RuntimeError, AssertionError) as error:
            load.failures.append(f"stream: {error!r}")


async def paced(ask: Callable[[], Awaitable[httpx.Response]], load: Load, end: float) -> None:
    """As many requests, one after the other, as there are edits in a phase."""
    pause = load.phase_seconds / EDITS_PER_PHASE
    for _ in range(min(EDITS_PER_PHASE, load.num_edits)):
        started = time.perf_counter()
        if started > end:
            return
        answer = await ask()
        if answer.status_code != 200:
            load.failures.append(f"{load.phase}: {answer.status_code} {answer.text}")
        await asyncio.sleep(max(0.0, pause - (time.perf_counter() - started)))


async def edit_on(client: httpx.AsyncClient, load: Load) -> None:
    """The phases, one after the other, until all edits are made."""
    dice = random.Random(0)
    url, end = f"/v1/presets/{load.preset}", time.perf_counter() + load.max_seconds

    async def edit() -> httpx.Response:
        weights = {name: {"weight": round(dice.uniform(-1, 1), 3)} for name in load.sources}
        started = time.perf_counter()
        answer = await client.patch(url, json={"sources": weights})
        load.edit_seconds.append(time.perf_counter() - started)
        return answer

    while len(load.edit_seconds) < load.num_edits and time.perf_counter() < end:
        load.phase = "nothing"
        await asyncio.sleep(load.phase_seconds)
        load.phase = "reads"
        await paced(lambda: client.get(url), load, end)
        load.phase = "edits"
        await paced(edit, load, end)
    load.done = True


async def replay(client: httpx.AsyncClient, load: Load, num_at_once: int) -> int:
    """Ask for every response again, of its own revision; how many texts differ."""
    different = 0
    turns = asyncio.Semaphore(num_at_once)

    async def again(response: Response) -> None:
        nonlocal different
        (revision,) = response.revisions
        body = {
            "model": f"{load.preset}@{revision}",
            "prompt": response.prompt,
            "max_tokens": load.max_tokens,
            "temperature": 1.0,
            "seed": response.seed,
            "ignore_eos": True,
        }
        async with turns:
            answer = await client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            load.failures.append(f"replay: {answer.status_code} {answer.text}")
        elif answer.json()["choices"][0]["text"] != response.text:
            different += 1

    responses = random.Random(1).sample(load.responses, len(load.responses))
    await asyncio.gather(*(again(response) for response in responses))
    return different


@asynccontextmanager
async def server(options: argparse.Namespace) -> AsyncIterator[str]:
    """The URL of the given server, or of one that is started for the occasion."""
    if options.url:
        yield options.url
        return
    async with started(options.port, "--dtype", "float32") as (url, _):
        yield url


@asynccontextmanager
async def started(port: int, *arguments: str) -> AsyncIterator[tuple[str, int]]:
    """A server with the demo model and a database of its own: its URL, and its process id."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "server", "serve", "--demo", "--port", str(port),
            "--database-url", f"sqlite:///{folder}/edits.db", "--revisions-kept", "100000",
            *arguments,
        ]  # fmt: skip
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            await wait_until_ready(url)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(30)


async def wait_until_ready(url: str) -> None:
    """Wait for /readyz."""
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(600):
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
    raise TimeoutError(f"{url} did not become ready")


async def edited(client: httpx.AsyncClient, load: Load, num_streams: int) -> int:
    """Edit a preset that is there while streams run; how many responses came from several
    revisions.
    """
    streams = [stream_on(client, load, number) for number in range(num_streams)]
    await asyncio.gather(edit_on(client, load), *streams)
    return sum(len(response.revisions) != 1 for response in load.responses)


async def under_load(url: str, load: Load, num_streams: int) -> tuple[int, int]:
    """Run the load; how many responses came from several revisions, and how many replays differ."""
    limits = httpx.Limits(max_connections=num_streams + 2)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        document = {"sources": {name: {"weight": 0.5} for name in load.sources}}
        (await client.put(f"/v1/presets/{load.preset}", json=document)).raise_for_status()
        mixed = await edited(client, load, num_streams)
        return mixed, await replay(client, load, num_streams) if not mixed else -1


async def run(options: argparse.Namespace) -> bool:
    """Run the load, print what was seen, and say whether it was right."""
    first, second = options.sources
    load = Load(options.preset, (first, second), options.edits, options.max_tokens)
    async with server(options) as url:
        mixed, different = await under_load(url, load, options.streams)
    report(load, mixed)
    print(f"replays with another text: {different}")
    return not load.failures and not mixed and not different


def report(load: Load, mixed: int) -> None:
    """Print what was seen."""
    revisions = {revision for response in load.responses for revision in response.revisions}
    print(f"{len(load.edit_seconds)} edits, {len(load.responses)} responses")
    print(f"failed requests: {len(load.failures)} {load.failures[:3]}")
    print(f"responses from more than one revision: {mixed}")
    print(f"revisions that answered: {len(revisions)}")
    milliseconds = [1000 * seconds for seconds in load.edit_seconds]
    print(f"edit: median {statistics.median(milliseconds):.1f} ms, p99 {p99(milliseconds):.1f} ms")
    for phase in PHASES:
        times = [1000 * r.seconds_to_first for r in load.responses if r.phase == phase]
        name = f"beside {phase}"
        if not times:
            print(f"time to the first token {name}: no response")
            continue
        print(
            f"time to the first token {name}: median {statistics.median(times):.1f} ms, "
            f"p99 {p99(times):.1f} ms, {len(times)} responses"
        )


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[int(0.99 * (len(values) - 1))]


def main() -> None:
    """Parse, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--url")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--preset", default="edited")
    parser.add_argument("--sources", nargs=2, default=["sql", "pirate"], metavar="NAME")
    sys.exit(0 if asyncio.run(run(parser.parse_args())) else 1)


if __name__ == "__main__":
    main()
