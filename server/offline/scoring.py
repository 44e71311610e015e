"""Whether what was written computes what the live merge computes: a few prompts, scored by both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel

from merging.blend import Blend
from merging.errors import OutputError
from merging.plan import Plan
from merging.trim_cache import TrimCache
from server.engine.engine import Engine
from server.engine.loading import load_engine
from server.engine.model_files import auto_class, load_config
from server.engine.options import EngineOptions
from server.engine.request import Member, Request, SamplingParams, TokenLogprobs
from server.engine.variant import Variant
from server.presets.workshop import Workshop

PROMPTS: Final = (
    "The capital of France is Paris, and the capital of Italy is",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "Question: what is 12 times 7? Answer: 12 times 7 is",
    '{"name": "Ada", "born": 1815, "city": "London"}',
)
NUM_TOP: Final = 256
"""Likeliest tokens of the live merge that KL sees one by one; the others count together."""

NUM_COMPARED: Final = 20
"""Likeliest tokens whose log-probabilities are compared one by one: those of what is less likely
differ by more than 1e-4 through the rounding of float32 alone.
"""

MAX_TOKENS: Final = 64
"""Of each prompt, so that every model has room for it."""

TINY: Final = 1e-7
"""Less than this is rounding in what is missing to a sum of float32 probabilities."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The live merge on one prompt: for every token after the first, the likeliest next tokens
    [tokens, top] and their log-probabilities, float64.
    """

    token_ids: tuple[int, ...]
    top: torch.Tensor
    logprobs: torch.Tensor


@dataclass(frozen=True, slots=True)
class Comparison:
    """Live against exported, over `num_tokens` next-token distributions.

    `kl`: mean of KL(live || exported) in nats, all but the likeliest `NUM_TOP` tokens counted as
    one. `same_top`: share of positions where both have the same likeliest token.
    `largest_difference`: of a log-probability among the `NUM_COMPARED` likeliest tokens.
    """

    num_tokens: int
    kl: float
    same_top: float
    largest_difference: float

    def text(self) -> str:
        """One line."""
        return (
            f"live against written over {self.num_tokens} tokens: KL {self.kl:.2e} nats, same top "
            f"token {self.same_top:.1%}, largest difference of a log-probability "
            f"{self.largest_difference:.2e} (of the {NUM_COMPARED} likeliest tokens)"
        )


def score_live(folder: Path, plan: Plan, device: str) -> list[Scores]:
    """Score the prompts with the engine, in float32: the merge as it is before any rounding.

    Raises EngineError if the base cannot be loaded, UnprocessableError if a variant is not built.
    """
    loaded = load_engine(folder, EngineOptions(device=device, dtype="float32", max_rows=1))
    weights: Blend | Variant = plan.blend
    if plan.variant is not None:
        workshop = Workshop(loaded.variants, TrimCache(0))
        wide = replace(plan.variant, dtype="float32")
        weights = workshop.build(wide, lambda need: None, lambda: False).variant
    prompts = (loaded.tokenizer.encode(text)[:MAX_TOKENS] for text in PROMPTS)
    return [_score(loaded.engine, tuple(ids), weights) for ids in prompts if len(ids) > 1]


def _score(engine: Engine, token_ids: tuple[int, ...], weights: Blend | Variant) -> Scores:
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=NUM_TOP)
    engine.add(Request((Member(token_ids, weights),), sampling))
    prompt: tuple[TokenLogprobs, ...] | None = None
    while engine.scheduler.has_work:
        for _, output in engine.step():
            if output.error is not None:
                raise OutputError(f"the live merge cannot be scored: {output.error}")
            prompt = prompt or output.prompt
    assert prompt is not None
    top = [token.top for token in prompt[1:]]
    return Scores(
        token_ids,
        torch.tensor([[token_id for token_id, _ in tokens] for tokens in top]),
        torch.tensor([[logprob for _, logprob in tokens] for tokens in top], dtype=torch.float64),
    )


def compare_checkpoint(live: Sequence[Scores], folder: Path) -> Comparison:
    """Score a checkpoint with transformers, computing in float32."""
    return _compare(live, _load(folder))


def compare_adapter(live: Sequence[Scores], folder: Path, base_folder: Path) -> Comparison:
    """Score an adapter on its base with PEFT, computing in float32."""
    from peft import PeftModel  # takes seconds, which a checkpoint does not need

    return _compare(live, PeftModel.from_pretrained(_load(base_folder), folder))


def _load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = auto_class(load_config(folder)).from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    return model


@torch.inference_mode()
def _compare(live: Sequence[Scores], model: torch.nn.Module) -> Comparison:
    model.eval()
    divergences, agreements, largest = [], [], 0.0
    for scores in live:
        inputs = torch.tensor([scores.token_ids])
        logits = model(input_ids=inputs, use_cache=False).logits[0, :-1]
        written = logits.double().log_softmax(-1)
        there = written.gather(1, scores.top)
        differences = (there - scores.logprobs)[:, :NUM_COMPARED].abs()
        largest = max(largest, float(differences.max()))
        agreements += (written.argmax(-1) == scores.top[:, 0]).tolist()
        divergences += _divergence(scores.logprobs, there).tolist()
    count = len(divergences)
    return Comparison(count, sum(divergences) / count, sum(agreements) / count, largest)


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL of each row, [tokens]; what is missing to a sum of 1 counts as one more outcome."""
    rest_p, rest_q = (1 - x.exp().sum(-1) for x in (p, q))
    rest = torch.where(
        (rest_p > TINY) & (rest_q > TINY),
        rest_p * (rest_p.clamp_min(TINY) / rest_q.clamp_min(TINY)).log(),
        0.0,
    )
    return ((p.exp() * (p - q)).sum(-1) + rest).clamp_min(0.0)
