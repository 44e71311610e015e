"""Engines over tiny models, and the naive way to do what they do."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merging.adapter import Adapter, read_adapter
from merging.base import Base
from merging.blend import Blend
from server.engine.device import pick_device
from server.engine.engine import Engine
from server.engine.group import Group
from server.engine.loading import build_engine
from server.engine.model import describe
from server.engine.options import EngineOptions
from server.engine.request import Member, Output, Request, SamplingParams
from server.engine.tokenizer import Tokenizer
from server.engine.variant import Variant, VariantFactory
from tests.adapters import blend_of, merge_densely, save_adapter
from tests.models import VOCAB_SIZE, tiny_model
from tests.tokenizers import byte_tokenizer

DEVICE = pick_device("auto")
"""CUDA where there is one."""


@dataclass
class Bench:
    """An engine over a tiny model, and the same model untouched."""

    engine: Engine
    variants: VariantFactory
    reference: PreTrainedModel
    base: Base
    folder: Path
    outputs: dict[Group, list[Output]] = field(default_factory=dict)

    @property
    def empty(self) -> Blend:
        """The base itself."""
        return blend_of(self.base, {})

    def adapter(self, seed: int = 0, **options: object) -> Adapter:
        """A random adapter of the model."""
        folder = self.folder / f"adapter-{seed}"
        return read_adapter(save_adapter(folder, self.reference, seed=seed, **options))

    def add(
        self,
        prompt: Sequence[int],
        weights: Blend | Variant | None = None,
        choice: int = 0,
        **sampling: object,
    ) -> Group:
        """Queue a request, greedy unless said otherwise."""
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **sampling})  # type: ignore[arg-type]
        member = Member(tuple(prompt), weights or self.empty)
        group = self.engine.add(Request((member,), params, choice))
        self.outputs[group] = []
        return group

    def step(self) -> None:
        """One step, its outputs kept."""
        for group, output in self.engine.step():
            self.outputs.setdefault(group, []).append(output)

    def run(self) -> None:
        """Step until nothing is left."""
        for _ in range(2000):
            if not self.engine.scheduler.has_work:
                return
            self.step()
        pytest.fail("the engine does not come to an end")

    def text(self, group: Group) -> str:
        """All text that the group sent."""
        return "".join(output.text for output in self.outputs[group])

    def merged(self, blend: Blend) -> PreTrainedModel:
        """The reference model with the blend written into its weights."""
        model = copy.deepcopy(self.reference)
        merge_densely(model, self.base, blend)
        return model.to(DEVICE)

    def check_integrity(self) -> None:
        """Assert that the scheduler's books are right."""
        groups = [*self.engine.scheduler.running, *self.engine.scheduler.waiting]
        held = [row.block_table for group in groups for row in group.rows]
        self.engine.scheduler.blocks.check_integrity(held)


def make_bench(
    folder: Path, family: str = "llama", eos: frozenset[int] = frozenset(), **options: object
) -> Bench:
    """Build a bench with a small, cramped engine unless `options` say otherwise."""
    reference = tiny_model(family)
    base = describe(reference, name="tiny", digest="sha256:tiny", dtype=torch.float32)
    tokenizer = Tokenizer(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=eos)
    settings = {"max_rows": 8, "kv_memory": 0.002, "block_size": 4, "max_step_tokens": 16}
    network = copy.deepcopy(reference).to(DEVICE)
    engine, variants = build_engine(network, tokenizer, EngineOptions(**{**settings, **options}))  # type: ignore[arg-type]
    return Bench(engine, variants, reference, base, folder)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A Llama bench whose books are checked at the end."""
    bench = make_bench(tmp_path)
    yield bench
    bench.check_integrity()


def naive_greedy(model: PreTrainedModel, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Greedy decoding with the whole sequence through the model at every token."""
    token_ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            inputs = torch.tensor([token_ids], device=model.device)
            token_ids.append(int(model(input_ids=inputs, use_cache=False).logits[0, -1].argmax()))
    return token_ids[len(prompt) :]


def naive_logprobs(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Log-probability that the model gives each token after the first, float32 [tokens - 1]."""
    with torch.inference_mode():
        inputs = torch.tensor([list(token_ids)], device=model.device)
        logprobs = model(input_ids=inputs, use_cache=False).logits[0].float().log_softmax(-1)
    targets = torch.tensor(token_ids[1:], device=model.device)[:, None]
    return logprobs[:-1].gather(1, targets)[:, 0].cpu()


def random_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random byte tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist())
