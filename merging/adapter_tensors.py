"""The tensors of an adapter, sorted by what they are: factors, copies of the base, or refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from merging.adapter_features import DENSE
from merging.adapter_names import PREFIX, SAVE
from merging.digest import value_digest
from merging.wording import shown

MARKS: Mapping[str, str] = {
    "lora_magnitude_vector": "use_dora",
    "lora_embedding_": "lora_embedding",
    "lora_B.bias": "lora_bias",
    "trainable_tokens_delta": "trainable_token_indices",
    "lora_diag": "kasa_config",
    "lora_velora": "velora_config",
    "lora_monteclora": "monteclora_config",
}
"""Parts of tensor names that give away a feature, whatever the config says."""

MAX_NAME = 160  # characters: the time that a pattern takes grows with them

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """`a` and `b`: factors by module path. `base_copies`: digest of values by base tensor name.

    `refusals`: reasons against serving the adapter, by feature or tensor. `dense`: why its delta is
    no product of two factors, by feature.
    """

    a: Mapping[str, torch.Tensor]
    b: Mapping[str, torch.Tensor]
    base_copies: Mapping[str, str]
    refusals: Mapping[str, str]
    dense: Mapping[str, str]


def sort_tensors(tensors: Mapping[str, torch.Tensor]) -> AdapterTensors:
    """Sort the tensors of adapter_model.safetensors by what their names say they are."""
    factors: Mapping[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    base_copies: dict[str, str] = {}
    refusals: dict[str, str] = {}
    dense: dict[str, str] = {}
    unexpected: list[str] = []
    for key, tensor in sorted(tensors.items()):
        name = key.removeprefix(PREFIX)
        mark = next((mark for mark in MARKS if mark in name), None)
        if len(name) > MAX_NAME:
            refusals["names"] = f"it has tensor names of more than {MAX_NAME} characters"
        elif name == key:  # PEFT would not load it
            unexpected.append(key)
        elif mark is not None:
            dense[MARKS[mark]] = f"{MARKS[mark]}: {DENSE[MARKS[mark]]}"
        elif match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            factors[match[2]][match[1]] = tensor
        elif match := re.fullmatch(r"(.+)\.base_layer(\.weight|\.bias)", name):
            base_copies[match[1] + match[2]] = value_digest(tensor)
        elif "lora_" not in name and name.endswith(".weight"):
            base_copies[name] = value_digest(tensor)
        elif "lora_" not in name and name.endswith(".bias"):
            dense["bias"] = f"bias: {DENSE['bias']}"
        else:
            unexpected.append(key)
    if unexpected:
        refusals["unexpected"] = (
            f"it has tensors that PEFT does not write: {shown(unexpected)}; {SAVE}"
        )
    if not factors["A"] and not factors["B"]:
        refusals["empty"] = "it has no lora_A and lora_B tensors"
    return AdapterTensors(factors["A"], factors["B"], base_copies, refusals, dense)


def value_problem(factor: torch.Tensor) -> str | None:
    """Why a factor's values cannot be used, whatever its shape."""
    if factor.dtype not in FLOATS:
        return f"is {factor.dtype}, not a floating-point tensor"
    if not bool(torch.isfinite(factor).all()):
        return "holds NaN or infinite values"
    return None
