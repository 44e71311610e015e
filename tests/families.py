"""Folders of tiny random models, of every family that docs/models.md lists."""

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from merging.base import locate
from scripts.families import tiny_config
from server.engine.model import find_linears
from server.engine.model_files import auto_class
from tests.tokenizers import byte_tokenizer

FUSED = ("gate_proj", "up_proj", "down_proj")
"""Parts that transformers fuses in experts: PEFT takes any target of such a name for one."""


def save_family(folder: Path, family: str, *, seed: int = 0, std: float = 0.25) -> Path:
    """Write a model of `family` with a tokenizer of single bytes, by transformers' own names."""
    config = tiny_config(family)
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(noise * std if parameter.ndim >= 2 else parameter + noise * 0.05)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load_family(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Transformers' own model of such a folder."""
    cls = auto_class(AutoConfig.from_pretrained(folder))
    model: PreTrainedModel = cls.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    return model.eval()


def adapter_targets(model: PreTrainedModel) -> list[str]:
    """The linears in the layers of the text model; beside experts only those of attention, since
    PEFT puts factors on the experts where a target has the name of one.
    """
    has_experts = any(parameter.ndim == 3 for parameter in model.parameters())
    return [
        name
        for name, _ in find_linears(model)
        if locate(name)
        and "vision" not in name
        and not (has_experts and any(part in name for part in ("mlp", "expert", *FUSED)))
    ]
