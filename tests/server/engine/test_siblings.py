"""Linears that read one input share a product; nobody may see a difference."""

import pytest
import torch
from torch import nn

from server.engine.blended import Siblings, Step, joined_bias, joined_weight
from server.engine.kernels import PlainKernel
from server.engine.model import find_linears, find_siblings
from server.engine.trial import reference_logits
from tests.adapters import blend_of
from tests.models import tiny_model
from tests.server.engine.conftest import Bench, naive_greedy, random_prompt

EXPECTED = {
    "llama": {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")},
    "gpt2": set(),  # c_attn is fused in the checkpoint
    "gemma2": {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")},
    "phi3": set(),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_siblings_are_found_where_the_forward_has_them(family: str) -> None:
    model = tiny_model(family)
    with find_siblings(model) as siblings:
        reference_logits(model, range(20))
    found = {tuple(name.split(".")[-1] for name in group) for group in siblings if len(group) > 1}
    assert found == EXPECTED[family]
    names = [name for group in siblings for name in group]
    assert sorted(names) == sorted(name for name, _ in find_linears(model))


def test_a_linear_that_did_not_run_is_alone() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    with find_siblings(model) as siblings:
        model["used"](torch.ones(1, 2))
    assert siblings == [["used"], ["unused"]]


def pair() -> tuple[Siblings, list[nn.Linear]]:
    linears = [nn.Linear(3, 4), nn.Linear(3, 2, bias=False)]
    weights, biases = [m.weight for m in linears], [m.bias for m in linears]
    kernel, bias = PlainKernel(joined_weight(weights)), joined_bias(weights, biases)
    return Siblings(kernel, bias, (4, 2), number=0, has_head=False, step=Step()), linears


@torch.inference_mode()
def test_a_bias_of_one_is_not_a_bias_of_the_other() -> None:
    siblings, linears = pair()
    x = torch.randn(1, 5, 3)
    for position, linear in enumerate(linears):
        torch.testing.assert_close(siblings.output(position, x), linear(x))


@torch.inference_mode()
def test_every_call_sees_its_own_input() -> None:
    """Also when a sibling was left out, and when the same tensor comes again, changed."""
    siblings, linears = pair()
    x, other = torch.randn(1, 1, 3), torch.randn(1, 1, 3)
    siblings.output(0, x)
    torch.testing.assert_close(siblings.output(0, other), linears[0](other))
    torch.testing.assert_close(siblings.output(1, x), linears[1](x))
    torch.testing.assert_close(siblings.output(0, x), linears[0](x))
    x += 1
    for position, linear in enumerate(linears):
        torch.testing.assert_close(siblings.output(position, x), linear(x))


@torch.inference_mode()
def test_a_result_may_be_written_to() -> None:
    siblings, linears = pair()
    x = torch.randn(1, 2, 3)
    siblings.output(0, x).zero_()
    torch.testing.assert_close(siblings.output(1, x), linears[1](x))
    torch.testing.assert_close(siblings.output(0, x), linears[0](x))


def test_adapters_on_one_of_several_siblings(bench: Bench) -> None:
    """Rows whose adapters touch different siblings of one layer share a step."""
    only = [bench.adapter(i, target_modules=[name]) for i, name in enumerate(("k_proj", "up_proj"))]
    blends = [blend_of(bench.base, {adapter: 1.0}) for adapter in only]
    prompts = [random_prompt(7, seed=i) for i in range(2)]
    groups = [bench.add(p, blend) for p, blend in zip(prompts, blends, strict=True)]
    bench.run()
    for prompt, blend, group in zip(prompts, blends, groups, strict=True):
        assert naive_greedy(bench.merged(blend), prompt, 12) == group.output_tokens
