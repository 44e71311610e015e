"""Decode throughput: plain rows, rows over 8 different blends, and transformers' own `generate`, in
one run.

    python -m bench.decode [MODEL] [--rows 1 4 8 16 32] [--steps 96]

MODEL defaults to the demo model. Adapters are random, rank 16 on every linear, as in the other
servers' benchmarks: each blend mixes two of eight. The engine is driven directly, without HTTP; a
figure is the median over decode steps, and the variants are alternated. Run it with nothing else
running, and compare ratios.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from merging.adapter import Adapter, LowRank
from merging.base import Base
from merging.blend import Blend
from server.demo import ensure_demo_model
from server.engine.engine import Engine
from server.engine.loading import load_engine
from server.engine.options import EngineOptions
from server.engine.request import Member, Request, SamplingParams

PROMPT_LEN = 64
NUM_ADAPTERS = 8
RANK = 16


def random_adapter(base: Base, seed: int) -> Adapter:
    """A rank-16 adapter on every linear except the head."""
    generator = torch.Generator().manual_seed(seed)

    def factor(rows: int, columns: int, scale: float) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * scale).bfloat16()

    factors = {
        name: LowRank(factor(RANK, s.in_features, 0.02), factor(s.out_features, RANK, 0.004), 2.0)
        for name, s in base.linears.items()
        if name != "lm_head"
    }
    return Adapter(f"random-{seed}", factors, None, None, Path(), 0)


def blends(base: Base, count: int) -> list[Blend]:
    """`count` blends of two neighbouring adapters each; no adapters at all for 0."""
    if count == 0:
        return [Blend("base", (), torch.zeros(0, len(base.linears)))]
    adapters = [random_adapter(base, seed) for seed in range(NUM_ADAPTERS)]
    result = []
    for index in range(count):
        pair = (adapters[index], adapters[(index + 1) % NUM_ADAPTERS])
        coefficients = torch.tensor([[0.6], [0.4]]).expand(2, len(base.linears)).contiguous()
        result.append(Blend(f"blend-{index}", pair, coefficients))
    return result


def prompt(row: int) -> tuple[int, ...]:
    """Token ids of one row's prompt, different for each row."""
    return tuple((7919 * i * (row + 1) + 100) % 40000 for i in range(1, PROMPT_LEN + 1))


def step_seconds(engine: Engine, num_rows: int, mix: list[Blend], num_steps: int) -> float:
    """Median seconds of a decode step with `num_rows` rows, row i under blend i modulo their
    number.
    """
    params = SamplingParams(temperature=0, max_tokens=num_steps + 8, ignore_eos=True)
    for row in range(num_rows):
        engine.add(Request((Member(prompt(row), mix[row % len(mix)]),), params))
    return statistics.median(decode_seconds(engine, num_rows)[4:])


def decode_seconds(engine: Engine, num_groups: int) -> list[float]:
    """Run what is queued to its end; the seconds of each step in which all groups decoded."""
    seconds = []
    while engine.scheduler.has_work:
        started = time.perf_counter()
        outputs = engine.step()
        elapsed = time.perf_counter() - started
        running = engine.scheduler.running
        if len(outputs) == num_groups == len(running) and all(g.is_decoding for g in running):
            seconds.append(elapsed)
    return seconds


def generate_seconds(folder: Path, num_rows: int, num_steps: int) -> float:
    """Seconds of one step of transformers' `generate`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 2
    ids = torch.tensor([prompt(row) for row in range(num_rows)])
    elapsed = {}
    for count in (4, num_steps + 4):
        started = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
        elapsed[count] = time.perf_counter() - started
    return (elapsed[num_steps + 4] - elapsed[4]) / num_steps


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.model or ensure_demo_model()
    loaded = load_engine(folder, EngineOptions(dtype="bfloat16"))
    plain, mixed = blends(loaded.base, 0), blends(loaded.base, NUM_ADAPTERS)
    print(f"{folder.name}, bfloat16, {options.threads} threads, torch {torch.__version__}")
    print("| rows | plain tokens/s | 8 blends tokens/s | ratio |\n|---|---|---|---|")
    for num_rows in options.rows:
        times: dict[str, list[float]] = {"plain": [], "blends": []}
        for _ in range(3):
            times["plain"].append(step_seconds(loaded.engine, num_rows, plain, options.steps))
            times["blends"].append(step_seconds(loaded.engine, num_rows, mixed, options.steps))
        base, blended = (statistics.median(times[name]) for name in ("plain", "blends"))
        rates = num_rows / base, num_rows / blended
        print(
            f"| {num_rows} | {rates[0]:.1f} | {rates[1]:.1f} | {base / blended:.2f} |", flush=True
        )
    for num_rows in (1, 4, 8):
        seconds = generate_seconds(folder, num_rows, options.steps)
        print(
            f"transformers generate, {num_rows} rows: {num_rows / seconds:.1f} tokens/s", flush=True
        )


if __name__ == "__main__":
    main()
