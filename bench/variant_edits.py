"""Edits of a preset with weights of its own under load: failures, mixed revisions, the time of an
edit, and the memory before and after.

    python -m bench.variant_edits [--edits 200] [--streams 4] [--seconds 600]

A server of its own with the demo model in bfloat16 serves a TIES preset of two full checkpoints,
the base plus random deltas, which are written to a temporary folder. While streams run one request
after the other its weights are edited. It exits with 1 unless no request failed and none came from
two revisions.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import httpx

from bench.edits import Load, edited, read_stream, report, started
from bench.merge import write_fine_tune
from merging.checkpoint_weights import open_checkpoint
from server.demo import ensure_demo_model

SOURCES = ("first", "second")
METRICS = ("variant_bytes", "variant_leaving_bytes", "variant_cache_bytes")
MIB = 2**20
NUM_WARM_UP = 64
"""Requests before the memory is measured; keys and values then fill the little that they may."""


def memory(pid: int, field: str = "VmRSS") -> float:
    """A figure of a process's memory in MiB, of the kernel's names."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Bytes of variants in MiB."""
    lines = (await client.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(values[f"mergeserve_{name}"]) / MIB for name in METRICS}


async def told(client: httpx.AsyncClient, pid: int, when: str) -> None:
    """Print the memory once it is quiet: what was in use was packed, what was let go is gone."""
    await asyncio.sleep(5)
    parts = [f"{name} {value:.0f}" for name, value in (await metrics(client)).items()]
    own, mapped = memory(pid, "RssAnon"), memory(pid, "RssFile")
    print(f"{when}: {own:.0f} MiB, and {mapped:.0f} of mapped files; {', '.join(parts)}")


async def run(options: argparse.Namespace, folders: dict[str, Path]) -> bool:
    """Run the load, print what was seen, and say whether it was right."""
    load = Load("edited", SOURCES, options.edits, 16, max_seconds=options.seconds)
    sources = [f"--source={name}={folder}" for name, folder in folders.items()]
    arguments = ("--dtype", "bfloat16", "--variant-memory", "2", "--kv-memory", "0.06", *sources)
    document = {
        "method": "ties",
        "sources": {name: {"weight": 0.5, "density": 0.5} for name in SOURCES},
    }
    async with (
        started(options.port, *arguments) as (url, pid),
        httpx.AsyncClient(base_url=url, timeout=300) as client,
    ):
        (await client.put(f"/v1/presets/{load.preset}", json=document)).raise_for_status()
        for number in range(NUM_WARM_UP):
            await read_stream(client, load, f"Request {number}.", number)
        await told(client, pid, "before")
        mixed = await edited(client, load, options.streams)
        await read_stream(client, load, "The last request.", 0)
        await told(client, pid, "after")
        print(f"most: {memory(pid, 'VmHWM'):.0f} MiB, mapped files included")
    report(load, mixed)
    return not load.failures and not mixed


def main() -> None:
    """Write the checkpoints, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=600, help="no edit begins later")
    parser.add_argument("--port", type=int, default=8124)
    options = parser.parse_args()
    base = open_checkpoint(ensure_demo_model())
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in SOURCES}
        for seed, path in enumerate(folders.values()):
            write_fine_tune(base, path, seed)
        sys.exit(0 if asyncio.run(run(options, folders)) else 1)


if __name__ == "__main__":
    main()
