"""How long builds of variants take: each method on two fine-tunes of a model, as a Markdown table.

    python -m bench.merge FOLDER [--methods ties sce …] [--mergekit-python PYTHON] [--repeat 3]

The fine-tunes are the model in FOLDER plus random deltas of rank 16 on every linear layer, in its
own dtype, written to a temporary folder. For each method:

    first      nothing is known of the sources; their files are in the page cache
    re-weight  the same recipe with other weights, where trims are cached
    memory     the most that the process held beside the mapped files and the result, in either

Times are the best of `--repeat`. With --mergekit-python, a Python that has mergekit and torch, the
same merges are also timed there, in memory, with all threads.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from merging.build import build, default_workers
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.methods import METHODS
from merging.methods.method import Method
from merging.setting import Scalar
from merging.source import CheckpointDeltas
from merging.trim_cache import TrimCache
from merging.variant import Ingredient, TensorPlan, VariantPlan

RANK, SCALE, STD = 16, 2.0, 0.004
GIVEN: Mapping[str, Mapping[str, Scalar]] = {
    "della": {"density": 0.5, "epsilon": 0.05},
    "della_linear": {"density": 0.5, "epsilon": 0.05},
    "sce": {"select_topk": 0.5},
    "slerp": {"t": 0.5},
    "nearswap": {"t": 0.001},
    "lines": {"alpha": 0.5, "beta": 0.5},
    "expo": {"alpha": 0.5},
}
"""Values beside weights of 0.6 and 0.4 and densities of 0.5."""

MERGEKIT = """
import json, sys, time
from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import load_file

base, a0, a1, cases, repeat = *sys.argv[1:4], json.loads(sys.argv[4]), int(sys.argv[5])
loaded = {name: load_file(path) for name, path in (("base", base), ("a0", a0), ("a1", a1))}
for method, case in cases.items():
    best = float("inf")
    try:
        for _ in range(repeat):
            start = time.perf_counter()
            merge_state_dicts({name: loaded[name] for name in case["models"]}, method,
                              base=case["base"], parameters=case["parameters"])
            best = min(best, time.perf_counter() - start)
    except Exception as error:
        print(method, repr(error), file=sys.stderr, flush=True)
        continue
    print(json.dumps([method, best]), flush=True)
"""


def write_fine_tune(base: CheckpointWeights, folder: Path, seed: int) -> None:
    """The base plus a random delta of low rank on every matrix inside the layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in base.shapes.items():
        tensor = base.tensor(name)
        if len(shape) == 2 and ".layers." in f".{name}":
            a = torch.empty(RANK, shape[1]).uniform_(-1, 1, generator=generator)
            b = torch.empty(shape[0], RANK).normal_(std=STD, generator=generator)
            tensor = (tensor.float() + SCALE * (b @ a) / math.sqrt(shape[1])).to(tensor.dtype)
        tensors[name] = tensor.clone()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")


def make_plan(
    method: Method, base: CheckpointWeights, tuned: Sequence[CheckpointWeights], weight: float
) -> VariantPlan:
    """Merge every tensor by a method; the weights of the sources are `weight` and the rest to 1."""
    models = {f"a{i}": weights for i, weights in enumerate(tuned[: method.max_sources])}
    if method.base == "input" and method.max_sources is None:
        models["base"] = base
    values = values_of(method, len(models), weight)
    tensors = tuple(
        TensorPlan(
            name,
            shape,
            None if method.base == "input" else name,
            tuple(Ingredient(source, name) for source in models),
            values,
        )
        for name, shape in base.shapes.items()
    )
    return VariantPlan(
        digest="bench",
        method=method,
        resident=base,
        base=base,
        sources={name: CheckpointDeltas(weights) for name, weights in models.items()},
        tensors=tensors,
        shared={},
        layers=(),
        dtype=str(base.tensor(next(iter(base.shapes))).dtype).removeprefix("torch."),
        seed=0,
        num_bytes=base.num_bytes,
    )


def values_of(method: Method, count: int, weight: float) -> dict[str, Scalar | tuple[Scalar, ...]]:
    """A value for every parameter."""
    given = {"density": 0.5, **GIVEN.get(method.name, {})}
    values: dict[str, Scalar | tuple[Scalar, ...]] = {}
    for parameter in method.parameters:
        value = given.get(parameter.name, parameter.default)
        if value is None and parameter.doc.gradient:
            value = parameter.doc.gradient[0]
        value = 1.0 if value is None else value
        values[parameter.name] = (value,) * count if parameter.scope == "source" else value
    if "weight" in values and count > 1:
        values["weight"] = (weight, 1 - weight, 0.2)[:count]
    return values


@dataclass
class Memory:
    """The anonymous memory of this process, watched by a thread: the most above the start."""

    peak: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for as long as it is entered."""
        start = anonymous_bytes()

        def watch() -> None:
            while not self._done.wait(0.002):
                self.peak = max(self.peak, anonymous_bytes() - start)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()


def anonymous_bytes() -> int:
    """Resident bytes of this process that are not pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True)
class Timing:
    """Seconds, and bytes."""

    first: float
    reweight: float
    memory: int


def time_method(
    method: Method,
    base: CheckpointWeights,
    tuned: Sequence[CheckpointWeights],
    out: Callable[[str], torch.Tensor],
    repeat: int,
) -> Timing:
    """Build a variant, and build it again with other weights."""

    def once(weight: float, cache: TrimCache) -> float:
        start = time.perf_counter()
        build(make_plan(method, base, tuned, weight), out, cache=cache)
        return time.perf_counter() - start

    first, reweight = math.inf, math.inf
    for _ in range(repeat):
        cache = TrimCache(1 << 30)
        first = min(first, once(0.6, cache))
        reweight = min(reweight, once(0.5, cache), once(0.7, cache))
    memory = Memory()
    with memory.watched():
        build(make_plan(method, base, tuned, 0.6), out, cache=TrimCache(1 << 30))
    return Timing(first, reweight, memory.peak)


def time_mergekit(
    python: str, methods: Sequence[Method], folders: Sequence[Path], repeat: int
) -> dict[str, float]:
    """Seconds that mergekit takes by method, where it has the method."""
    cases: dict[str, Any] = {}
    for method in methods:
        models = ["base", "a0", "a1"]
        if method.max_sources == 1:
            models = ["a0"] if method.base == "input" else ["base", "a0"]
        own = values_of(method, 2, 0.6)
        known = {"weight", "density", "gamma", "epsilon", "t", "select_topk"}
        parameters: dict[str, Any] = {}
        for name in known & own.keys():
            value = own[name]
            pair = isinstance(value, tuple)
            parameters[name] = dict(zip(("a0", "a1"), value, strict=False)) if pair else value
        if method.name == "linear":
            parameters["weight"] |= {"base": 0.2}
        base = None if method.base == "input" else "base"
        cases[method.name] = {"models": models, "base": base, "parameters": parameters}
    files = [str(folder / "model.safetensors") for folder in folders]
    command = [python, "-c", MERGEKIT, *files, json.dumps(cases), str(repeat)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def report(timings: Mapping[str, Timing], mergekit: Mapping[str, float]) -> None:
    """Print the table."""
    print(
        f"| method | first (s) | re-weight (s) | memory (MB) |{' mergekit (s) |' * bool(mergekit)}"
    )
    print("|---|---|---|---|" + "---|" * bool(mergekit))
    for name, timing in timings.items():
        row = f"| {name} | {timing.first:.2f} | {timing.reweight:.2f} | {timing.memory / 1e6:.0f} |"
        if mergekit:
            row += f" {mergekit[name]:.2f} |" if name in mergekit else " |"
        print(row)


def run(options: argparse.Namespace) -> None:
    """Write the fine-tunes, time every method, print."""
    kinds = [m for m in METHODS.values() if m.kind != "low_rank"]
    methods = [m for m in kinds if not options.methods or m.name in options.methods]
    base = open_checkpoint(options.folder)
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / f"ft{i}" for i in range(2)]
        for seed, folder in enumerate(folders):
            write_fine_tune(base, folder, seed)
        tuned = [open_checkpoint(folder) for folder in folders]
        dtype = base.tensor(next(iter(base.shapes))).dtype
        buffers = {name: torch.zeros(shape, dtype=dtype) for name, shape in base.shapes.items()}
        timings = {}
        for method in methods:
            timings[method.name] = time_method(
                method, base, tuned, buffers.__getitem__, options.repeat
            )
            print(f"{method.name} {timings[method.name]}", file=sys.stderr, flush=True)
        mergekit: Mapping[str, float] = {}
        if options.mergekit_python:
            paths = [Path(options.folder), *folders]
            mergekit = time_mergekit(options.mergekit_python, methods, paths, options.repeat)
    print(
        f"{len(base.shapes)} tensors, {base.num_bytes / 1e6:.0f} MB, {default_workers()} workers, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n"
    )
    report(timings, mergekit)


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="*", default=[], choices=[*METHODS, []], metavar="NAME")
    parser.add_argument("--mergekit-python", metavar="PYTHON")
    parser.add_argument("--repeat", type=int, default=3)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
