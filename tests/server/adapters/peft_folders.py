"""Adapters of many types, made by PEFT on tiny models, and PEFT's own unmerged forward."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "v_proj", "down_proj"]
ATTENTION = ["q_proj", "v_proj"]
TOKENS = [3, 60, 5, 258, 17, 101, 1, 44, 97, 12]
"""A text that has tokens whose rows are trained."""


def _lora(**fields: object) -> PeftConfig:
    return peft.LoraConfig(**{"r": 4, "target_modules": TARGETS, **fields})


KINDS: Mapping[str, tuple[str, Callable[[], PeftConfig]]] = {
    "dora": ("llama", lambda: _lora(use_dora=True)),
    "modules_to_save": ("llama", lambda: _lora(modules_to_save=["embed_tokens", "norm"])),
    "head": ("llama", lambda: _lora(modules_to_save=["lm_head"])),
    "tied": ("llama", lambda: _lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "embedding": ("llama", lambda: _lora(target_modules=["q_proj", "embed_tokens"])),
    "bias": ("qwen2", lambda: _lora(bias="all")),
    "lora_bias": ("qwen2", lambda: _lora(lora_bias=True, target_modules=["q_proj"])),
    "token_rows": ("llama", lambda: _lora(trainable_token_indices=[1, 5, 101])),
    "trainable_tokens": ("llama", lambda: peft.TrainableTokensConfig(token_indices=[1, 5, 101])),
    "target_parameters": (
        "llama",
        lambda: _lora(target_modules=["q_proj"], target_parameters=["self_attn.k_proj.weight"]),
    ),
    "pissa": ("llama", lambda: _lora(init_lora_weights="pissa")),
    "olora": ("llama", lambda: _lora(init_lora_weights="olora")),
    "loha": ("llama", lambda: peft.LoHaConfig(r=4, target_modules=TARGETS)),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=4, target_modules=TARGETS)),
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"])),
    "oft": ("llama", lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=TARGETS)),
    "boft": ("llama", lambda: peft.BOFTConfig(boft_block_size=4, target_modules=ATTENTION)),
    "ia3": (
        "llama",
        lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "ia3_gpt2": (
        "gpt2",
        lambda: peft.IA3Config(
            target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True
        ),
    ),
    "fourierft": ("llama", lambda: peft.FourierFTConfig(n_frequency=50, target_modules=TARGETS)),
    "c3a": ("llama", lambda: peft.C3AConfig(block_size=8, target_modules=ATTENTION)),
    "hra": ("llama", lambda: peft.HRAConfig(r=4, target_modules=TARGETS)),
    "vblora": (
        "llama",
        lambda: peft.VBLoRAConfig(
            r=4, num_vectors=16, vector_length=8, topk=2, target_modules=ATTENTION
        ),
    ),
    "randlora": ("llama", lambda: peft.RandLoraConfig(r=4, target_modules=ATTENTION)),
    "adalora": (
        "llama",
        lambda: peft.AdaLoraConfig(init_r=6, target_r=4, total_step=9, target_modules=TARGETS),
    ),
    "ln_tuning": ("llama", lambda: peft.LNTuningConfig(target_modules=["input_layernorm"])),
}
"""The family of the base, and the config."""


def load(base: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def save_kind(folder: Path, base: Path, make: Callable[[], PeftConfig], seed: int = 1) -> Path:
    """Write an adapter whose trained values are random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = get_peft_model(load(base), make())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        model.save_pretrained(folder)
    return folder


def unmerged_log_probabilities(base: Path, folder: Path) -> torch.Tensor:
    """Of TOKENS but the first, under PEFT's own forward: [len(TOKENS) - 1]."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load(base), folder).eval()
        rows = torch.log_softmax(model(input_ids=torch.tensor([TOKENS])).logits[0].float(), -1)
    return rows[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])]
