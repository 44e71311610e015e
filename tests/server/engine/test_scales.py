"""Blends that scale the base's own weights: `y = s (W0 x) + b + blend`, row by row."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from merging.blend import Blend
from server.engine.blended import Siblings, Step
from server.engine.kernels import PlainKernel
from server.engine.scales import base_scales
from tests.adapters import blend_of, merge_densely
from tests.server.engine.conftest import (
    DEVICE,
    Bench,
    make_bench,
    naive_greedy,
    naive_logprobs,
    random_prompt,
)


def scaled(blend: Blend, scales: torch.Tensor) -> Blend:
    return Blend(f"{blend.digest} scaled", blend.adapters, blend.coefficients, scales)


def dense(bench: Bench, blend: Blend) -> PreTrainedModel:
    """The reference model with the blend and its scales written into its weights."""
    model = copy.deepcopy(bench.reference)
    assert blend.base_scales is not None
    for name, scale in zip(bench.base.linears, blend.base_scales, strict=True):
        module = model.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach() * scale)  # unties a head
    merge_densely(model, bench.base, blend)
    return model.to(DEVICE)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2", "gpt-neox"])
def test_scaled_rows_equal_dense_models(family: str, tmp_path: Path) -> None:
    """Rows with scales of their own, with and without adapters, and rows without any, in one batch,
    give the log-probabilities of a dense model each; biases are not scaled.
    """
    bench = make_bench(tmp_path, family)
    adapter = bench.adapter(1)
    num_modules = len(bench.base.linears)
    some = torch.ones(num_modules)
    some[::3] = torch.linspace(0.4, 1.3, len(some[::3]))
    plain = blend_of(bench.base, {adapter: 0.7})
    blends = [
        scaled(plain, torch.linspace(0.5, 1.5, num_modules)),
        bench.empty,
        scaled(bench.empty, some),
        plain,
    ]
    prompts = [random_prompt(6 + 9 * i, seed=i) for i in range(4)]
    groups = [
        bench.add(prompt, blend, prompt_logprobs=0)
        for prompt, blend in zip(prompts, blends, strict=True)
    ]
    bench.run()
    for prompt, blend, group in zip(prompts, blends, groups, strict=True):
        model = bench.merged(blend) if blend.base_scales is None else dense(bench, blend)
        assert naive_greedy(model, prompt, 12) == group.output_tokens
        actual = torch.tensor([token.logprob for token in group.prompt_logprobs[1:]])
        torch.testing.assert_close(actual, naive_logprobs(model, prompt), atol=2e-5, rtol=0)


def siblings(dtype: torch.dtype, step: Step) -> Siblings:
    """Two linears of 3 and 5 outputs with biases."""
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 4).to(dtype), torch.randn(8).to(dtype)
    return Siblings(PlainKernel(weight), bias, [3, 5], number=2, has_head=False, step=step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_scale_of_one_changes_no_bit(dtype: torch.dtype) -> None:
    """Whatever the neighbours' scales are."""
    step = Step()
    layer = siblings(dtype, step)
    x = torch.randn(1, 3, 4).to(dtype)
    before = [layer.output(position, x).clone() for position in range(2)]
    step.scales = {2: torch.tensor([[1.0, 1.0], [0.3, 1e30]])}
    step.row_of_token = torch.tensor([0, 1, 0])
    after = [layer.output(position, x) for position in range(2)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, [0, 2]], new[:, [0, 2]])
        assert not torch.equal(old[:, 1], new[:, 1])
        assert new.dtype == dtype


@torch.inference_mode()
def test_small_differences_of_scales_survive_bfloat16() -> None:
    """Scales stay float32: 1.0 and 1.001 are the same in bfloat16."""
    step = Step(scales={2: torch.tensor([[1.001, 1.0]])})
    layer = siblings(torch.bfloat16, step)
    x = torch.randn(1, 1, 4).bfloat16() * 1e3
    product = layer.kernel(x, layer.bias)[..., :3].float()
    assert layer.bias is not None
    expected = 1.001 * (product - layer.bias[:3].float()) + layer.bias[:3].float()
    assert torch.equal(layer.output(0, x), expected.bfloat16())


def by_number(*blends: Blend) -> Mapping[int, list[list[float]]]:
    columns = [[1], [0, 3], [2]]
    found = base_scales(blends, columns, torch.device("cpu"))
    return {number: scales.tolist() for number, scales in found.items()}


def test_only_linears_that_some_row_scales_are_scaled() -> None:
    """No scales, or all of one, cost nothing; the rest is sorted by siblings, in their order."""
    plain = Blend("plain", (), torch.zeros(0, 4))
    ones = scaled(plain, torch.ones(4))
    other = scaled(plain, torch.tensor([1.0, 1.0, 0.5, 2.0]))
    assert by_number(plain, plain) == {}
    assert by_number(plain, ones) == {}
    assert by_number(plain, other) == {1: [[1.0, 1.0], [1.0, 2.0]], 2: [[1.0], [0.5]]}
