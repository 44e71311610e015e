"""Adapters of MLX (mlx-lm): the same low-rank deltas as PEFT's, transposed and under other names.

MLX computes `y = W x + scale * lora_b^T lora_a^T x`, with lora_a [in, rank] and lora_b [rank, out];
its `scale` is the factor itself, and not divided by the rank. `num_layers` says which layers were
trained; the tensors of the others are not in the file.
"""

from collections.abc import Mapping
from typing import Final

import torch

from merging.errors import SourceError

WEIGHTS: Final = "adapters.safetensors"

FUSE: Final = (
    "fuse it into its model where MLX runs (mlx_lm.fuse --dequantize), and register the result, "
    "which is a checkpoint"
)
MARKS: Final = ("fine_tune_type", "lora_parameters", "lora_layers")
NAMES: Final = {".lora_a": ".lora_A.weight", ".lora_b": ".lora_B.weight"}
PREFIX: Final = "base_model.model."


def is_mlx(config: Mapping[str, object]) -> bool:
    """Whether an adapter_config.json is MLX's."""
    return "peft_type" not in config and any(mark in config for mark in MARKS)


def peft_config(config: Mapping[str, object]) -> dict[str, object]:
    """What PEFT would write in place of MLX's config. SourceError for what is no plain LoRA."""
    given = config.get("lora_parameters")
    parameters: Mapping[str, object] = given if isinstance(given, dict) else {}
    kind = config.get("fine_tune_type", "lora")
    if config.get("use_dora") or kind == "dora":
        raise SourceError(f"it is a DoRA adapter of MLX, which is not read: {FUSE}")
    if kind != "lora":
        raise SourceError(f"fine_tune_type {kind!r} of MLX is not a LoRA: {FUSE}")
    if "alpha" in parameters:
        raise SourceError(
            "lora_parameters.alpha: the first releases of mlx-lm scaled by scale * alpha / rank, "
            "later ones by scale alone; put the factor that it was trained with into "
            "lora_parameters.scale, and leave alpha out"
        )
    rank, scale = parameters.get("rank"), parameters.get("scale")
    if not _is_number(rank) or not _is_number(scale):
        raise SourceError(
            f"lora_parameters: an adapter of MLX needs its rank and scale there, got {given!r}"
        )
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,  # type: ignore[operator]
        "base_model_name_or_path": config.get("model"),
    }


def peft_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MLX's factors under PEFT's names and in its shapes, A [rank, in] and B [out, rank]; whatever
    else there is keeps its name.
    """
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        end = next((end for end in NAMES if name.endswith(end)), None)
        if end is None:
            converted[name] = tensor
        else:
            factor = tensor.T.contiguous() if tensor.ndim == 2 else tensor
            converted[f"{PREFIX}{name.removesuffix(end)}{NAMES[end]}"] = factor
    return converted


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
