"""One name for each tensor, whatever the files call it: checked against what transformers saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from server.engine.parameter_names import ParameterNames

TEXT: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
CONFIGS = {
    "llama": LlamaConfig(**TEXT, tie_word_embeddings=False),
    "gpt2": GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=2, n_positions=32),
    "gpt_neox": GPTNeoXConfig(**TEXT, tie_word_embeddings=False),
    "mixtral": MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(
        **TEXT,
        num_key_value_heads=2,
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    ),
    "qwen3_vl_moe": AutoConfig.for_model(
        "qwen3_vl_moe_text",
        **TEXT,
        num_key_value_heads=2,
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    ),
    "gemma3": AutoConfig.for_model(
        "gemma3",
        text_config={"model_type": "gemma3_text", **TEXT, "num_key_value_heads": 2, "head_dim": 8},
        vision_config=VISION,
    ),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name])


def saved(model: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "gemma3"])
def test_each_tensor_of_a_file_is_the_part_of_the_model_that_its_name_says(
    name: str, tmp_path: Path
) -> None:
    """No tensor of a file is without its place, and each place has the values of the file."""
    model = made(name)
    names, files = ParameterNames(model), saved(model, tmp_path)
    parameters = model.state_dict()
    parts = {n: t for p, tensor in parameters.items() for n, t in names.split(p, tensor).items()}
    naming = names.naming(files)
    assert naming.keys() == files.keys()
    for own, tensor in files.items():
        assert torch.equal(parts[naming[own]], tensor), own


@pytest.mark.parametrize("name", ["gpt_neox", "mixtral", "qwen3_moe", "gemma3"])
def test_a_parameter_is_joined_from_its_files(name: str, tmp_path: Path) -> None:
    """`join` is what transformers does when it loads, `split` what it does when it saves."""
    model = made(name)
    names, files = ParameterNames(model), saved(model, tmp_path)
    by_name = {names.naming(files)[own]: tensor for own, tensor in files.items()}
    joined = 0
    for parameter, tensor in model.state_dict().items():
        if parameter == "lm_head.weight" and parameter not in by_name:
            continue  # tied
        assert torch.equal(names.join(parameter, by_name.__getitem__), tensor), parameter
        joined += bool(names.parts_of(parameter))
    assert joined == (4 if name in ("mixtral", "qwen3_moe") else 0)


def test_the_same_names_without_weights() -> None:
    """A model whose parameters are on the meta device has the names of a real one."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(CONFIGS["mixtral"])
    assert ParameterNames(empty).parts == ParameterNames(made("mixtral")).parts


def test_files_of_other_versions_have_the_same_names() -> None:
    """What files call a tensor changed over the years; here it is one name."""
    names = ParameterNames(made("gpt_neox"))
    assert names.naming(["embed_out.weight"]) == {"embed_out.weight": "lm_head.weight"}
    assert names.naming(["lm_head.weight"]) == {"lm_head.weight": "lm_head.weight"}
    own = "model.language_model.layers.0.mlp.up_proj.weight"
    gemma = ParameterNames(made("gemma3"))
    for file in (own, "language_model.model.layers.0.mlp.up_proj.weight"):
        assert gemma.naming([file]) == {file: own}


def test_a_prefix_that_files_lack() -> None:
    """Hubs have GPT-2 without the `transformer.` of the model."""
    names = ParameterNames(made("gpt2"))
    assert names.naming(["h.0.mlp.c_fc.weight"])["h.0.mlp.c_fc.weight"] == (
        "transformer.h.0.mlp.c_fc.weight"
    )


def test_names_that_the_model_does_not_know_stay() -> None:
    """Whoever refuses them shows the user the name in the file."""
    names = ParameterNames(made("qwen3_moe"))
    for unknown in ("model.layers.0.mlp.experts.9.up_proj.weight", "optimizer.step"):
        assert names.naming([unknown]) == {unknown: unknown}


def test_naming_twice_gives_the_same() -> None:
    """transformers' conversions note their use; what one call saw does not change the next."""
    names = ParameterNames(made("mixtral"))
    file = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    first = names.naming([file])
    assert first == names.naming([file]) == {file: "model.layers.1.mlp.experts.3.w2.weight"}


def test_parts_share_the_memory_of_their_parameter() -> None:
    """What is written to a part is in the parameter, without a copy."""
    model = made("qwen3_moe")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    parameter = model.get_parameter(name).detach()
    part = ParameterNames(model).split(name, parameter)
    part["model.layers.0.mlp.experts.2.up_proj.weight"].fill_(7.0)
    assert bool((parameter[2, 24:] == 7).all())
    assert not bool((parameter[2, :24] == 7).any())
