"""The keys and values of every layer, in blocks. Only attention reads and writes them."""

import threading
from collections.abc import Sequence
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


def bytes_per_token(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token occupies over the layers of `shapes`.

    An engine's limit of KV memory counts the layers of its base alone; see `KVCache.reserve`.
    """
    return sum(shape.num_values for shape in shapes) * dtype.itemsize


class KVCache:
    """Per layer `keys` and `values`, [kv_heads, num_blocks, block_size, dim].

    Heads come first, so that gathering blocks yields [kv_heads, rows, tokens, dim] in one piece.
    Layers of one shape that are made together share one tensor. On a CPU the memory is reserved
    here and taken page by page as blocks are first written.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._dtype, self._device = dtype, device
        # [layers, kv_heads, num_blocks, block_size, dim]; a tuple: `clear` may be reading it
        self._storages: tuple[torch.Tensor, ...] = ()
        self._shapes: list[LayerShape] = []
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._growing = threading.Lock()
        self.reserve(shapes)

    def reserve(self, shapes: Sequence[LayerShape]) -> tuple[int, ...]:
        """Which layer of the cache each layer of a model uses, where `shapes` are its layers'.

        Layers that are missing are added, for the same blocks; this may happen while another thread
        reads and writes the others. The k-th layer of a shape is always the same layer of the
        cache, so what a digest left in a block stays its own. What is added for models deeper than
        the base comes on top of the engine's limit of KV memory, and stays.
        """
        with self._growing:
            places = self._places(shapes)
            missing = [shape for shape, place in zip(shapes, places, strict=True) if place is None]
            if missing:
                self._grow(missing)
            found = [place for place in self._places(shapes) if place is not None]
            assert len(found) == len(shapes)
            return tuple(found)

    def _places(self, shapes: Sequence[LayerShape]) -> list[int | None]:
        unused = list(enumerate(self._shapes))
        places: list[int | None] = []
        for shape in shapes:
            entry = next((entry for entry in unused if entry[1] == shape), None)
            if entry is not None:
                unused.remove(entry)
            places.append(None if entry is None else entry[0])
        return places

    def _grow(self, shapes: Sequence[LayerShape]) -> None:
        keys: dict[int, torch.Tensor] = {}
        values: dict[int, torch.Tensor] = {}
        storages: list[torch.Tensor] = []
        for shape in dict.fromkeys(shapes):
            layers = [layer for layer, other in enumerate(shapes) if other == shape]
            for caches, dim in ((keys, shape.key_dim), (values, shape.value_dim)):
                size = (len(layers), shape.num_kv_heads, self.num_blocks, self.block_size, dim)
                storage = _lazy_zeros(size, self._dtype, self._device)
                storages.append(storage)
                caches.update(zip(layers, storage, strict=True))
        self._storages += tuple(storages)
        self._keys += [keys[layer] for layer in range(len(shapes))]
        self._values += [values[layer] for layer in range(len(shapes))]
        self._shapes += shapes

    def clear(self, blocks: list[int]) -> None:
        """Zero `blocks`, which are handed to new rows.

        What their last row left behind is masked out, but a mask adds minus infinity or multiplies
        by zero, and neither removes a NaN. Layers that only deeper models have are wiped too.
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
