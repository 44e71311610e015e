"""The keys and values of every layer, in blocks. Only attention reads and writes them."""

import threading
import weakref
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

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
    """Bytes of keys and values that one token occupies over the layers of `shapes`."""
    return sum(shape.num_values for shape in shapes) * dtype.itemsize


class KVCache:
    """Per layer `keys` and `values`, [kv_heads, num_blocks, block_size, dim].

    Heads come first, so that gathering blocks yields [kv_heads, rows, tokens, dim] in one piece.
    Layers of one shape that are made together share one tensor. On a CPU the memory is reserved
    here and taken page by page as blocks are first written.

    A cache may have extensions: the same layers, and more of their own for the same blocks, which
    live as long as somebody has them.
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
        self._storages: list[torch.Tensor] = []  # its own, [layers, kv_heads, num_blocks, …]
        self._shapes: list[LayerShape] = []
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._stale: set[int] = set()  # blocks of an extension that still hold another row's
        self._extensions: tuple[weakref.ref[KVCache], ...] = ()  # replaced, as `clear` may read it
        self._extending = threading.Lock()
        self._grow(shapes)

    def extra_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """What the layers of a model with these `shapes` take beyond those that are here, once
        every block was written.
        """
        _, missing = self._places(shapes)
        return bytes_per_token(missing, self._dtype) * self.num_blocks * self.block_size

    def extended(self, shapes: Sequence[LayerShape]) -> "KVCache":
        """A cache with layers for a model of these `shapes`: this one, if it has them all.

        It may be made on any thread while another one reads and writes this one.
        """
        _, missing = self._places(shapes)
        if not missing:
            return self
        extension = KVCache([], self.num_blocks, self.block_size, self._dtype, self._device)
        extension._shapes = list(self._shapes)
        extension._keys, extension._values = list(self._keys), list(self._values)
        extension._grow(missing)
        with self._extending:
            present = (each for each in self._extensions if each() is not None)
            self._extensions = (*present, weakref.ref(extension))
        return extension

    def places(self, shapes: Sequence[LayerShape]) -> tuple[int, ...]:
        """Which layer of the cache each layer of a model with these `shapes` uses.

        The k-th layer of a shape is always the same layer of the cache, so what a digest left in a
        block stays its own.
        """
        places, missing = self._places(shapes)
        assert not missing, "a deeper model needs an extension"
        return tuple(places)

    def _places(self, shapes: Sequence[LayerShape]) -> tuple[list[int], list[LayerShape]]:
        """The layers that are here, and the shapes of those that are not."""
        unused = list(enumerate(self._shapes))
        places: list[int] = []
        missing: list[LayerShape] = []
        for shape in shapes:
            entry = next((entry for entry in unused if entry[1] == shape), None)
            if entry is None:
                missing.append(shape)
            else:
                unused.remove(entry)
                places.append(entry[0])
        return places, missing

    def _grow(self, shapes: Sequence[LayerShape]) -> None:
        keys: dict[int, torch.Tensor] = {}
        values: dict[int, torch.Tensor] = {}
        for shape in dict.fromkeys(shapes):
            layers = [layer for layer, other in enumerate(shapes) if other == shape]
            for caches, dim in ((keys, shape.key_dim), (values, shape.value_dim)):
                size = (len(layers), shape.num_kv_heads, self.num_blocks, self.block_size, dim)
                storage = _lazy_zeros(size, self._dtype, self._device)
                self._storages.append(storage)
                caches.update(zip(layers, storage, strict=True))
        self._keys += [keys[layer] for layer in range(len(shapes))]
        self._values += [values[layer] for layer in range(len(shapes))]
        self._shapes += shapes

    def clear(self, blocks: Collection[int]) -> None:
        """Zero `blocks`, which are handed to new rows.

        What their last row left behind is masked out, but a mask adds minus infinity or multiplies
        by zero, and neither removes a NaN. Extensions zero theirs when a row of their own has them.
        """
        self._zero(blocks)
        for reference in self._extensions:
            extension = reference()
            if extension is not None:
                extension._stale.update(blocks)

    def freshen(self, tables: Iterable[Sequence[int]]) -> None:
        """Zero what other rows left in the blocks of `tables` since their last rows of this
        extension; before its rows are computed.
        """
        if self._stale:
            blocks = self._stale.intersection(chain.from_iterable(tables))
            self._stale -= blocks
            self._zero(blocks)

    def _zero(self, blocks: Collection[int]) -> None:
        for storage in self._storages if blocks else ():
            storage[:, :, list(blocks)] = 0

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
    if device.type != "cpu" or 0 in size:
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = int(np.prod(size)) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(size)
