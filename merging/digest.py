"""Digests: "sha256:" and 64 hex digits, of plain JSON values and of a tensor's values."""

import hashlib
import json

import torch

CHUNK = 1 << 20  # elements converted at a time


def canonical_json(value: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, ASCII. NaN in it is our own bug."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_digest(value: object) -> str:
    """Digest of the canonical JSON of a value of plain JSON types."""
    return "sha256:" + hashlib.sha256(canonical_json(value).encode()).hexdigest()


def content_digest(tensor: torch.Tensor) -> str:
    """Digest of a tensor's dtype, shape and bits."""
    content = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    content.update(_bytes(tensor))
    return "sha256:" + content.hexdigest()


def value_digest(tensor: torch.Tensor) -> str:
    """Digest of a tensor's shape and values: the same for equal numbers in bf16 and in float32."""
    content = hashlib.sha256(str(list(tensor.shape)).encode())
    flat, dtype = tensor.detach().reshape(-1), torch.promote_types(tensor.dtype, torch.float32)
    for start in range(0, flat.numel(), CHUNK):
        wide = flat[start : start + CHUNK].to(dtype)
        content.update(_bytes(wide + 0.0))  # -0.0 and 0.0 are the same number
    return "sha256:" + content.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
