"""Every family of docs/models.md, from files to tokens: what transformers generates."""

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merging.base import locate
from scripts.families import FAMILIES, VISION_FAMILIES, WINDOW
from server.engine.loading import LoadedModel, load_engine
from server.engine.options import EngineOptions
from server.engine.probe import check_variant
from tests.adapters import blend_of
from tests.families import adapter_targets, load_family, save_family
from tests.server.engine.conftest import (
    DEVICE,
    Bench,
    naive_greedy,
    naive_logprobs,
    random_prompt,
)
from tests.server.engine.variants import dense_model, make_variant, random_changes

OWN_ATTENTION = {
    "bloom": "biases by distance",
    "codegen": "its own rotary positions",
    "deepseek_v3": "latent keys and values",
    "falcon": "biases by distance, in the mask",
    "gemma4_text": "layers that read another's keys",
    "gpt_neo": "local windows in a buffer",
    "jetmoe": "experts of attention",
    "llama4_text": "chunks, and queries that grow",
    "mpt": "biases by distance, past the end of a table",
    "phimoe": "a window in masks alone",
}
"""One family of each kind of attention that runs as the family's own."""

KINDS = [*OWN_ATTENTION, "gpt_oss", "nemotron", "stablelm"]
NUM_TOKENS = 10


def bench_of(tmp_path: Path, family: str, **options: object) -> Bench:
    """A cramped engine over the files of a tiny model of `family`."""
    folder = save_family(tmp_path / family, family)
    settings = {"max_rows": 8, "kv_memory": 0.004, "block_size": 4, "max_step_tokens": 16}
    loaded: LoadedModel = load_engine(
        folder,
        EngineOptions(dtype="float32", device=DEVICE.type, **{**settings, **options}),  # type: ignore[arg-type]
    )
    return Bench(loaded.engine, loaded.variants, load_family(folder), loaded.base, tmp_path)


def inner_linears(bench: Bench) -> list[str]:
    """The linears in the layers."""
    return [name for name in bench.base.linears if locate(name) is not None]


def generated(model: PreTrainedModel, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """Transformers' own greedy generation, with its own cache."""
    model.generation_config.eos_token_id = None
    inputs = torch.tensor([prompt], device=model.device)
    answer = model.generate(inputs, max_new_tokens=num_tokens, do_sample=False)
    return answer[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", [*FAMILIES, *VISION_FAMILIES])
def test_generated_tokens_are_transformers(family: str, tmp_path: Path) -> None:
    """Rows of mixed lengths, shorter and longer than the windows, read in chunks and decoded
    together, give transformers' own greedy tokens.
    """
    bench = bench_of(tmp_path, family)
    lengths = (WINDOW - 4, WINDOW + 1, 3 * WINDOW)
    prompts = [random_prompt(length, seed=length) for length in lengths]
    groups = [bench.add(prompt, max_tokens=NUM_TOKENS, ignore_eos=True) for prompt in prompts]
    bench.run()
    model = bench.reference.to(DEVICE)
    for prompt, group in zip(prompts, groups, strict=True):
        assert generated(model, prompt, NUM_TOKENS) == group.output_tokens


@pytest.mark.parametrize("family", KINDS)
def test_kinds_of_attention(family: str, tmp_path: Path) -> None:
    """For every kind of attention, rows of several blends in one batch give the log-probabilities
    of merged models.
    """
    bench = bench_of(tmp_path, family)
    assert bench.engine._runner.is_packed == (family not in OWN_ATTENTION)
    targets = adapter_targets(bench.reference)
    first = bench.adapter(1, r=2, target_modules=targets)
    second = bench.adapter(2, r=5, use_rslora=True, target_modules=targets)
    blends = [
        blend_of(bench.base, {first: 1.0}),
        blend_of(bench.base, {first: 0.6, second: -0.4}),
        bench.empty,
    ]
    prompts = [random_prompt(length, seed=length) for length in (21, 21, 13)]
    groups = [
        bench.add(prompt, blend, prompt_logprobs=0, ignore_eos=True)
        for prompt, blend in zip(prompts, blends, strict=True)
    ]
    bench.run()
    for prompt, blend, group in zip(prompts, blends, groups, strict=True):
        model = bench.merged(blend)
        actual = torch.tensor([token.logprob for token in group.prompt_logprobs[1:]])
        torch.testing.assert_close(actual, naive_logprobs(model, prompt), atol=1e-4, rtol=0)
        assert naive_greedy(model, prompt, 12) == group.output_tokens


@pytest.mark.parametrize("family", KINDS)
def test_variants_of_every_kind(family: str, tmp_path: Path) -> None:
    """A variant with weights of its own in every linear gives the tokens of the dense model."""
    bench = bench_of(tmp_path, family)
    names = [f"{name}.weight" for name in inner_linears(bench)]
    changes = random_changes(bench, names, list(range(bench.base.num_layers)), seed=1)
    variant = make_variant(bench, changes)
    check_variant(variant)
    prompt = random_prompt(2 * WINDOW)
    groups = [bench.add(prompt, weights, ignore_eos=True) for weights in (variant, bench.empty)]
    bench.run()
    models = [dense_model(bench, changes), bench.merged(bench.empty)]
    for model, group in zip(models, groups, strict=True):
        assert naive_greedy(model, prompt, 12) == group.output_tokens
    assert groups[0].output_tokens != groups[1].output_tokens


@pytest.mark.parametrize("family", ["bloom", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_preemption(family: str, tmp_path: Path) -> None:
    """Rows that lose their blocks and are computed again give the same tokens."""
    bench = bench_of(tmp_path, family)
    per_block = bench.engine.config.block_bytes
    bench = bench_of(tmp_path, family, kv_memory=30 * per_block / 2**30)
    dice = random.Random(0)
    prompts = [random_prompt(dice.randint(1, 40), seed=seed) for seed in range(6)]
    groups = [bench.add(prompt, max_tokens=24, ignore_eos=True) for prompt in prompts]
    bench.run()
    bench.check_integrity()
    assert any(group.num_preemptions for group in groups)
    model = bench.reference.to(DEVICE)
    for prompt, group in zip(prompts, groups, strict=True):
        assert naive_greedy(model, prompt, 24) == group.output_tokens
