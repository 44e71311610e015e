"""The KV cache as a family's own attention sees it: transformers' `Cache`, of rows of one length.

Where attention is not ours, a forward takes such rows only, so every mask, bias and position is the
family's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from server.engine.kv_cache import KVCache
from server.engine.step_plan import RowWork


@dataclass(frozen=True, slots=True)
class AlikeRows:
    """Rows of equal weights that add equally many tokens to equally many in the cache.

    `index`: [1], the place of one of them in the step's work. `token_ids`, `positions`: [rows,
    tokens]; `slots`: [rows x tokens]; `blocks`: [rows, blocks]. The last `num_logits` tokens of
    each give logits.
    """

    work: Sequence[RowWork]
    index: torch.Tensor
    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    blocks: torch.Tensor
    num_context: int
    num_logits: int

    @property
    def num_tokens(self) -> int:
        """New tokens of each row."""
        return self.token_ids.shape[1]

    @property
    def num_keys(self) -> int:
        """Tokens of each row that are in the cache when the forward has ended."""
        return self.num_context + self.num_tokens


def alike_rows(work: Sequence[RowWork], block_size: int, device: torch.device) -> list[AlikeRows]:
    """A step's work in as few forwards as there are lengths and weights in it.

    Rows with other weights could share a forward, but not soundly: a linear may see the keys of all
    tokens, or an expert's tokens only, and then nothing says which row is which.
    """
    sets: dict[tuple[str, int, int, int], list[int]] = {}
    for index, item in enumerate(work):
        row = item.row
        key = (row.weights.digest, row.num_computed, item.num_tokens, item.num_logits)
        sets.setdefault(key, []).append(index)
    return [_pack(work, indices, block_size, device) for indices in sets.values()]


def _pack(
    work: Sequence[RowWork], indices: Sequence[int], size: int, device: torch.device
) -> AlikeRows:
    items = [work[index] for index in indices]
    begin, count = items[0].row.num_computed, items[0].num_tokens
    end = begin + count
    positions = torch.arange(begin, end, device=device).expand(len(items), count)
    width = -(-end // size)
    blocks = torch.tensor([item.row.block_table[:width] for item in items], device=device)
    slots = blocks.gather(1, positions // size) * size + positions % size
    return AlikeRows(
        work=items,
        index=torch.tensor(indices[:1], device=device),
        token_ids=torch.tensor([item.row.tokens[begin:end] for item in items], device=device),
        positions=positions,
        slots=slots.flatten(),
        blocks=blocks,
        num_context=begin,
        num_logits=items[0].num_logits,
    )


class RowCache(Cache):  # type: ignore[misc]
    """What `rows` keep in `cache`, whose layers `places` the model's are. All keys are kept, also
    those that have left a window: the family's masks hide them.
    """

    def __init__(self, rows: AlikeRows, cache: KVCache, places: Sequence[int]) -> None:
        super().__init__(layers=[RowLayer(rows, cache, place) for place in places])

    @property
    def written(self) -> list[int]:
        """The layers of the model that wrote keys and values."""
        layers = enumerate(self.layers)
        return [
            index for index, layer in layers if isinstance(layer, RowLayer) and layer.is_written
        ]


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of it."""

    is_sliding = False

    def __init__(self, rows: AlikeRows, cache: KVCache, place: int) -> None:
        super().__init__()
        self._rows, self._cache, self._place = rows, cache, place
        self.is_written = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is kept here."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values, [rows, kv_heads, tokens, dim]; give those of all tokens."""
        rows = self._rows
        key, value = (new.transpose(0, 1).flatten(1, 2) for new in (key_states, value_states))
        self._cache.write(self._place, rows.slots, key, value)
        self.is_written = True
        keys, values = self._cache.read(self._place, rows.blocks)
        return (
            keys.transpose(0, 1)[:, :, : rows.num_keys],
            values.transpose(0, 1)[:, :, : rows.num_keys],
        )

    def get_seq_length(self) -> int:
        """Tokens in the cache, as this layer sees it."""
        return self._rows.num_keys if self.is_written else self._rows.num_context

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """None, which is -1 here."""
        return -1
