"""The keys and values of every layer, in blocks. Only attention reads and writes them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps for each token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_values(self) -> int:
        """Numbers kept per token."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


def bytes_per_token(shapes: Mapping[int, LayerShape], dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token occupies over all layers."""
    return sum(shape.num_values for shape in shapes.values()) * dtype.itemsize


class KVCache:
    """Per layer `keys` and `values`, [kv_heads, num_blocks, block_size, dim].

    Heads come first, so that gathering blocks yields [kv_heads, rows, tokens, dim] in one piece.
    Layers of one shape share one tensor. On a CPU the memory is reserved here and taken page by
    page as blocks are first written.
    """

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._storages: list[torch.Tensor] = []  # [layers, kv_heads, num_blocks, block_size, dim]
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        for shape in dict.fromkeys(shapes.values()):
            layers = [layer for layer, other in shapes.items() if other == shape]
            for caches, dim in ((self._keys, shape.key_dim), (self._values, shape.value_dim)):
                size = (len(layers), shape.num_kv_heads, num_blocks, block_size, dim)
                storage = _lazy_zeros(size, dtype, device)
                self._storages.append(storage)
                caches.update(zip(layers, storage, strict=True))

    def clear(self, blocks: list[int]) -> None:
        """Zero `blocks`, which are handed to new rows.

        What their last row left behind is masked out, but a mask adds minus infinity or multiplies
        by zero, and neither removes a NaN.
        """
        for storage in self._storages:
            storage[:, :, blocks] = 0

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store `key` and `value`, [kv_heads, tokens, dim], at `slots` (block x block_size +
        offset), [tokens].
        """
        for cache, new in ((self._keys[layer], key), (self._values[layer], value)):
            cache.flatten(1, 2).index_copy_(1, slots, new)

    def read(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `blocks` [rows, blocks], each [kv_heads, rows, tokens, dim]."""
        return self._gather(self._keys[layer], blocks), self._gather(self._values[layer], blocks)

    def _gather(self, cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        heads, _, size, dim = cache.shape
        rows, per_row = blocks.shape
        gathered = cache.flatten(2).index_select(1, blocks.flatten())
        return gathered.view(heads, rows, per_row * size, dim)


def _lazy_zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU the operating system provides the pages when they are first written."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = int(np.prod(size)) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(size)
