"""The files of an adapter's folder: where its tensors are, and what they record of its base."""

import os
from pathlib import Path

from merging import mlx_adapter
from merging.adapter_config import read_config
from merging.checkpoint import Header
from merging.errors import SourceError
from merging.not_weights import no_weights

WEIGHTS = "adapter_model.safetensors"
BASE_DIGEST_KEYS = ("base_digest", "base_model_digest")
"""Keys of the weights' metadata under which an adapter may record the digest of its base."""


def weights_file(folder: Path) -> Path:
    """The file with an adapter's tensors; SourceError with every reason if it is of no use."""
    config, path = read_config(folder), weights_path(folder)
    if "peft_type" in config.refusals:  # whatever else is odd in it follows from that
        raise SourceError(config.refusals["peft_type"])
    if not os.path.lexists(path):
        absent = f"{path} is missing" if any(folder.glob("*.safetensors")) else no_weights(folder)
        raise SourceError([*config.refusals.values(), absent])
    return path


def weights_path(folder: Path) -> Path:
    """Where an adapter's tensors are, in PEFT's form or in MLX's; PEFT's where there are none."""
    return folder / (mlx_adapter.WEIGHTS if is_mlx(folder) else WEIGHTS)


def is_mlx(folder: Path) -> bool:
    """Whether an adapter's tensors are in MLX's form."""
    return (folder / mlx_adapter.WEIGHTS).exists() and not (folder / WEIGHTS).exists()


def recorded_digest(header: Header) -> str | None:
    """The digest of its base that an adapter's file records."""
    recorded = (header.metadata.get(key) for key in BASE_DIGEST_KEYS)
    return next((digest for digest in recorded if digest), None)
