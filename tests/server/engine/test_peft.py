"""An adapter alone gives what PEFT's own unmerged forward gives."""

from pathlib import Path

import pytest
import torch

from merging.adapter import check_adapter, read_adapter
from merging.plan import plan
from merging.recipe import Recipe
from tests.adapters import peft_logits, save_adapter
from tests.server.engine.conftest import make_bench, random_prompt

FEATURES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True, "r": 3}),
    "rank pattern": ("llama", {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}}),
    "alpha pattern": (
        "llama",
        {"alpha_pattern": {"down_proj": 3, "layers.2.self_attn.q_proj": 11}},
    ),
    "some layers": (
        "llama",
        {"layers_to_transform": [0, 2], "target_modules": ["q_proj", "v_proj"]},
    ),
    "one module": ("qwen3", {"target_modules": ["o_proj"]}),
    "a regular expression": ("llama", {"target_modules": r".*\.1\..*(gate|up)_proj"}),
    "dropout": ("llama", {"lora_dropout": 0.5}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"]}),
    "fused projections": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "untied head": ("llama-untied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
}


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*tied.*:UserWarning")
@pytest.mark.parametrize("feature", FEATURES)
def test_an_adapter_alone_equals_peft(feature: str, tmp_path: Path) -> None:
    """Through reading, checking, planning and the engine, log-probabilities equal PEFT's unmerged
    forward to 1e-4.
    """
    family, options = FEATURES[feature]
    bench = make_bench(tmp_path, family)
    folder = save_adapter(tmp_path / "adapter", bench.reference, **options)
    adapter = read_adapter(folder)
    tensors = bench.reference.state_dict()
    check_adapter(adapter, bench.base, base_tensor=tensors.get)
    recipe = Recipe(method="task_arithmetic", sources={"x": {"weight": 1.0}})
    blend = plan(recipe, {"x": adapter}, bench.base).blend
    prompt = random_prompt(24)
    group = bench.add(prompt, blend, prompt_logprobs=0)
    bench.run()
    expected = peft_logits(bench.reference, folder, list(prompt)).log_softmax(-1)
    targets = torch.tensor(prompt[1:])[:, None]
    actual = torch.tensor([token.logprob for token in group.prompt_logprobs[1:]])
    torch.testing.assert_close(actual, expected[:-1].gather(1, targets)[:, 0], atol=1e-4, rtol=0)
    plain = bench.add(prompt, prompt_logprobs=0)
    bench.run()
    base = torch.tensor([token.logprob for token in plain.prompt_logprobs[1:]])
    assert (actual - base).abs().max() > 1e-2, "the adapter changes nothing, so nothing is proved"
