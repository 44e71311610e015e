"""Adapters of MLX, read as what they compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merging.adapter import read_adapter
from merging.errors import SourceError

Q0, UP1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
CONFIG = {
    "fine_tune_type": "lora",
    "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0},
    "num_layers": 2,
    "model": "mlx-community/base-4bit",
}


def write(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
    return folder


def random_factors() -> dict[str, torch.Tensor]:
    """MLX's shapes: lora_a [in, rank], lora_b [rank, out]."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{Q0}.lora_a": (16, 4), f"{Q0}.lora_b": (4, 12)}
    shapes |= {f"{UP1}.lora_a": (16, 4), f"{UP1}.lora_b": (4, 24)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_it_computes_what_mlx_does(tmp_path: Path) -> None:
    """What a module adds to its output is `scale * (x @ lora_a) @ lora_b`."""
    tensors = random_factors()
    adapter = read_adapter(write(tmp_path, tensors))
    assert list(adapter.factors) == [Q0, UP1]
    assert adapter.base_name == "mlx-community/base-4bit"
    x = torch.randn(3, 16)
    for module, own in adapter.factors.items():
        expected = 20.0 * ((x @ tensors[f"{module}.lora_a"]) @ tensors[f"{module}.lora_b"])
        found = x @ (own.scale * own.b @ own.a).T
        assert torch.allclose(found, expected, atol=1e-3, rtol=1e-5)
        assert (own.scale, own.rank) == (20.0, 4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"fine_tune_type": "dora"}, "a DoRA adapter of MLX, which is not read: fuse it"),
        ({"use_dora": True}, "a DoRA adapter of MLX"),
        ({"fine_tune_type": "full"}, "fine_tune_type 'full' of MLX is not a LoRA: fuse it"),
        ({"lora_parameters": {"rank": 4, "alpha": 8, "scale": 2}}, "lora_parameters.alpha"),
        ({"lora_parameters": {"rank": 4}}, "needs its rank and scale there"),
        ({"lora_parameters": None}, "needs its rank and scale there"),
        ({"lora_parameters": {"rank": 8, "scale": 2}}, "the config gives it rank 8"),
        ({"lora_parameters": {"rank": 0, "scale": 2}}, "r must be a positive integer"),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    """By name, and with a way out."""
    with pytest.raises(SourceError, match=reason):
        read_adapter(write(tmp_path, random_factors(), **fields))


def test_experts_that_are_one_tensor_are_refused(tmp_path: Path) -> None:
    """Their factors have three dimensions."""
    tensors = {f"{Q0}.lora_a": torch.ones(2, 4, 16), f"{Q0}.lora_b": torch.ones(2, 12, 4)}
    with pytest.raises(SourceError, match="only linear layers"):
        read_adapter(write(tmp_path, tensors))
