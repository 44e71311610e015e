"""Tiny random models, and adapters of them: made by PEFT, or written by hand."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from merging.adapter import Adapter, LowRank
from merging.base import Base, Linear
from server.engine.parameter_names import ParameterNames

PREFIX = "base_model.model."


def tiny_llama(num_layers: int = 2, tied: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()


def base_of(model: Any, **fields: Any) -> Base:
    """The Base of a model as transformers built it."""
    linears = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            linears[name] = Linear(module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            linears[name] = Linear(module.nf, module.nx, transposed=True)
    return Base(
        **{
            "name": "tiny",
            "digest": "sha256:" + "0" * 64,
            "dtype": "float32",
            "num_layers": model.config.num_hidden_layers,
            "linears": linears,
            "ties": ties_of(model),
            "naming": ParameterNames(model).naming,
            **fields,
        }
    )


def ties_of(model: Any) -> dict[str, str]:
    """The head and the embedding by the names of their tensors, where they are tied."""
    if not model.config.tie_word_embeddings:
        return {}
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    return {"lm_head.weight": f"{name}.weight"}


def flat_base(
    num_layers: int = 4, kinds: tuple[str, ...] = ("self_attn.q_proj", "mlp.up_proj")
) -> Base:
    """A base of 4 x 4 linears without a model, and a head."""
    names = [f"model.layers.{i}.{kind}" for i in range(num_layers) for kind in kinds]
    linears = {name: Linear(4, 4) for name in [*names, "lm_head"]}
    return Base("flat", "sha256:" + "f" * 64, "float32", num_layers, linears)


def flat_adapter(base: Base, digest: str, rank: int = 2, contains: str = "layers") -> Adapter:
    """An adapter on the linears of a flat base whose names contain a text."""
    factors = {
        name: LowRank(torch.ones(rank, 4), torch.ones(4, rank), 1.0)
        for name in base.linears
        if contains in name
    }
    num_bytes = sum(factor.num_bytes for factor in factors.values())
    return Adapter(digest, factors, None, None, Path("flat"), num_bytes)


def save_peft(model: Any, folder: Path, **fields: Any) -> PeftModel:
    """Give a model a LoRA with random factors, save it as PEFT does, and return the PEFT model."""
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **fields})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what some of these tests are about
        peft_model = get_peft_model(model, config)
        torch.manual_seed(1)
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        peft_model.save_pretrained(folder)
    return peft_model.eval()


def write_adapter(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    **config: Any,
) -> Path:
    """Write an adapter's folder by hand. Names of tensors get PEFT's prefix; None drops a field."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", **config}
    fields = {key: value for key, value in fields.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(
        {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata=dict(metadata or {}),
    )
    return folder


def factors(
    *modules: str, rank: int = 2, out_features: int = 4, in_features: int = 4
) -> dict[str, torch.Tensor]:
    """Random lora_A and lora_B tensors for some modules."""
    torch.manual_seed(2)
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, in_features)
        tensors[f"{module}.lora_B.weight"] = torch.randn(out_features, rank)
    return tensors
