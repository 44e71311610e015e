"""From the request for a merge to its first token, over HTTP: each method on two fine-tunes.

    python -m bench.served_merge FOLDER [--methods ties sce …] [--repeat 3]

Starts a server with the model in FOLDER and the fine-tunes of `bench.merge`. For each method:

    first      a new preset, and one token of it; nothing is known of its trims
    re-weight  the preset with other weights, and one token of it; none where there are no weights

Times are medians of `--repeat`, in a process that has served merges before.
"""

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from bench.edits import wait_until_ready
from bench.merge import write_fine_tune
from merging.checkpoint_weights import open_checkpoint

METHODS = (
    "task_arithmetic", "linear", "ties", "dare_ties", "breadcrumbs", "della", "sce", "arcee_fusion",
)  # fmt: skip


def preset(method: str, weight: float, number: int) -> dict[str, Any]:
    """A document; `number` makes it differ from others, also in what its trims depend on."""
    if method == "arcee_fusion":  # it has no parameters: each source in turn
        return {"method": method, "sources": {f"a{number % 2}": {}}}
    share = 0.5 + 0.001 * number
    values: dict[str, Any] = {"weight": weight}
    recipe: dict[str, Any] = {"method": method}
    if method in ("ties", "dare_ties", "breadcrumbs", "della"):
        values["density"] = share
    if method == "della":
        values["epsilon"] = 0.05
    if method == "sce":
        values, recipe["parameters"] = {}, {"select_topk": share}
    second = values | {"weight": 1 - weight} if "weight" in values else values
    return recipe | {"sources": {"a0": values, "a1": second}}


async def served(client: httpx.AsyncClient, document: dict[str, Any]) -> float:
    """Seconds from the request for a preset to its first token."""
    start = time.perf_counter()
    (await client.put("/v1/presets/merged", json=document)).raise_for_status()
    body = {"model": "merged", "prompt": "The capital of France is", "max_tokens": 1}
    (await client.post("/v1/completions", json=body)).raise_for_status()
    return time.perf_counter() - start


async def measure(url: str, methods: Sequence[str], repeat: int) -> None:
    """Time all methods, print a table."""
    print("| method | first (s) | re-weight (s) |\n|---|---|---|")
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await served(client, preset("task_arithmetic", 0.3, 0))
        for method in methods:
            first, again = [], []
            for number in range(repeat):
                first.append(await served(client, preset(method, 0.6, number)))
                edited = preset(method, 0.5 + 0.01 * number, number)
                if edited != preset(method, 0.6, number):
                    again.append(await served(client, edited))
            row = f"{statistics.median(again):.2f}" if again else "-"
            print(f"| {method} | {statistics.median(first):.2f} | {row} |", flush=True)


def run(options: argparse.Namespace) -> None:
    """Write the fine-tunes, start a server, measure, stop it."""
    base = open_checkpoint(options.folder)
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable, "-m", "server", "serve", str(options.folder), "--variant-memory", "4",
            "--port", str(options.port), "--database-url", f"sqlite:///{temporary}/presets.db",
        ]  # fmt: skip
        for number in range(2):
            folder = Path(temporary) / f"a{number}"
            write_fine_tune(base, folder, number)
            shutil.copy(options.folder / "config.json", folder)
            command += ["--source", f"a{number}={folder}"]
        with (Path(temporary) / "log").open("w") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            url = f"http://127.0.0.1:{options.port}"
            asyncio.run(wait_until_ready(url))
            asyncio.run(measure(url, options.methods or METHODS, options.repeat))
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="*", default=[], choices=[*METHODS, []], metavar="NAME")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--repeat", type=int, default=3)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
