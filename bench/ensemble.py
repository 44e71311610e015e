"""What an ensemble of four adapters costs: against one adapter, and against a loop over four
transformers models.

    python -m bench.ensemble [MODEL] [--concurrency 1 8] [--steps 96]

MODEL defaults to the demo model. Adapters are random, rank 16 on every linear. The engine is driven
directly, without HTTP; a figure is the median over decode steps, and what is compared is
alternated. `log_pool` runs the four adapters, `task_arithmetic` the base beside them. Run it with
nothing else running, and compare ratios.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bench.decode import PROMPT_LEN, blends, decode_seconds, prompt, random_adapter
from ensemble.rule import Rule, compile_rule
from merging.base import Base
from merging.blend import Blend
from server.demo import ensure_demo_model
from server.engine.engine import Engine
from server.engine.loading import load_engine
from server.engine.options import EngineOptions
from server.engine.request import Member, Request, SamplingParams
from server.engine.slab import IDLE_STEPS

NUM_MEMBERS = 4
WEIGHT = 0.3
NUM_ROUNDS = 3


def weights_of(base: Base) -> dict[str, Blend]:
    """The base, and each of the adapters at weight 1."""
    ones = torch.ones(1, len(base.linears))
    adapters = [random_adapter(base, seed) for seed in range(NUM_MEMBERS)]
    alone = {a.digest: Blend(a.digest, (a,), ones) for a in adapters}
    return {"base": blends(base, 0)[0], **alone}


def step_seconds(
    engine: Engine, concurrency: int, weights: dict[str, Blend], rule: Rule | None, num_steps: int
) -> float:
    """Median seconds of a decode step of so many requests, each a group of the rule's rows. The
    first steps do not count: until then adapters of the run before may be in the slab.
    """
    params = SamplingParams(temperature=0, max_tokens=num_steps + 8, ignore_eos=True)
    names = rule.rows if rule is not None else ("random-0",)
    for number in range(concurrency):
        members = tuple(Member(prompt(number), weights[name], name) for name in names)
        engine.add(Request(members, params, rule=rule))
    return statistics.median(decode_seconds(engine, concurrency)[IDLE_STEPS + 4 :])


def loop_seconds(folder: Path, rule: Rule, num_steps: int) -> float:
    """Median seconds of a step that runs four models of transformers one after the other, each with
    its cache, and combines their logits.
    """
    first = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    models = [first, *(copy.deepcopy(first) for _ in range(NUM_MEMBERS - 1))]
    caches = [DynamicCache(config=first.config) for _ in models]
    token_ids, seconds = torch.tensor([prompt(0)]), []
    with torch.inference_mode():
        for _ in range(num_steps + 1):
            started = time.perf_counter()
            logits = [
                model(input_ids=token_ids, past_key_values=cache, use_cache=True).logits[0, -1]
                for model, cache in zip(models, caches, strict=True)
            ]
            token_ids = rule(torch.stack(logits).float()).argmax().view(1, 1)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[4:])


def compare(engine: Engine, base: Base, concurrencies: Sequence[int], num_steps: int) -> None:
    """Print a line for each number of requests at the same time."""
    weights = weights_of(base)
    coefficients = {name: WEIGHT for name in weights if name != "base"}
    rules = {
        "one adapter": None,
        "log_pool": compile_rule("log_pool", coefficients).pruned(),
        "task_arithmetic": compile_rule("task_arithmetic", coefficients).pruned(),
    }
    print("| requests | what | rows | tokens/s | to one adapter |\n|---|---|---|---|---|")
    for concurrency in concurrencies:
        times: dict[str, list[float]] = {name: [] for name in rules}
        for _ in range(NUM_ROUNDS):
            for name, rule in rules.items():
                taken = step_seconds(engine, concurrency, weights, rule, num_steps)
                times[name].append(taken)
        one = statistics.median(times["one adapter"])
        for name, rule in rules.items():
            own = statistics.median(times[name])
            rows = 1 if rule is None else len(rule.rows)
            print(
                f"| {concurrency} | {name} | {concurrency * rows} | {concurrency / own:.1f} | "
                f"{one / own:.2f} |",
                flush=True,
            )


def main() -> None:
    """Print a table, and what the loop takes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.model or ensure_demo_model()
    loaded = load_engine(folder, EngineOptions(dtype="bfloat16"))
    print(
        f"{folder.name}, bfloat16, {options.threads} threads, prompts of {PROMPT_LEN} tokens, "
        f"torch {torch.__version__}"
    )
    compare(loaded.engine, loaded.base, options.concurrency, options.steps)
    rule = compile_rule("log_pool", {f"m{index}": WEIGHT for index in range(NUM_MEMBERS)})
    seconds = loop_seconds(folder, rule, options.steps // 2)
    print(f"a loop over {NUM_MEMBERS} transformers models: {1 / seconds:.1f} tokens/s")


if __name__ == "__main__":
    main()
