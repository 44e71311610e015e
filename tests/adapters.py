"""Random LoRA adapters, made by PEFT, as folders; and what merging them by hand gives."""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from merging.adapter import Adapter
from merging.base import Base
from merging.blend import Blend


def save_adapter(
    folder: Path, model: PreTrainedModel, *, seed: int = 0, std: float = 0.1, **options: object
) -> Path:
    """Write a random adapter of `model`, which is left as it was. `options` go to `LoraConfig`."""
    settings: dict[str, object] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "fan_in_fan_out": model.config.model_type == "gpt2",
    }
    config = LoraConfig(task_type="CAUSAL_LM", **{**settings, **options})
    peft_model = get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=std)
    peft_model.save_pretrained(folder)
    peft_model.unload()
    return folder


def peft_logits(model: PreTrainedModel, folder: Path, token_ids: list[int]) -> torch.Tensor:
    """PEFT's own unmerged forward, float32 [tokens, vocab]; `model` is left as it was."""
    peft_model = PeftModel.from_pretrained(model, folder).eval()
    with torch.inference_mode():
        logits = peft_model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    peft_model.unload()
    return logits.float()


def blend_of(base: Base, weights: Mapping[Adapter, float | torch.Tensor]) -> Blend:
    """A blend with one weight for each adapter, or one for each module."""
    coefficients = [torch.as_tensor(w).expand(len(base.linears)) for w in weights.values()]
    digest = "+".join(f"{a.digest}*{w}" for a, w in weights.items())
    stacked = torch.stack(coefficients) if coefficients else torch.zeros(0, len(base.linears))
    return Blend(digest or "base", tuple(weights), stacked.float())


def merge_densely(model: PreTrainedModel, base: Base, blend: Blend) -> None:
    """Write `W0 + sum_i c_i s_i B_i A_i` into the weights of `model`."""
    for adapter, row in zip(blend.adapters, blend.coefficients, strict=True):
        for name, factor in adapter.factors.items():
            module = model.get_submodule(name)
            delta = float(row[base.module_index[name]]) * factor.scale * (factor.b @ factor.a)
            weight = module.weight
            if name == "lm_head" and weight is model.get_input_embeddings().weight:
                weight = module.weight = torch.nn.Parameter(weight.detach().clone())
            with torch.no_grad():
                weight += delta.T if base.linears[name].transposed else delta
