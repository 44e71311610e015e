"""One step's tokens as tensors: what the runner prepares and attention reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from server.engine.kv_cache import KVCache
from server.engine.step_plan import RowWork

SHORT_BLOCKS = 16
"""Decode rows of up to this many blocks are padded to one length; longer ones are bucketed by
powers of two.
"""


@dataclass(slots=True)
class DecodeBucket:
    """Rows with one new token each, of similar length, padded to the longest.

    `start`, `end`: their places in the packed step. `blocks`: [rows, blocks]; `lens`: [rows] tokens
    to attend to.
    """

    start: int
    end: int
    blocks: torch.Tensor
    lens: torch.Tensor
    _biases: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def bias(self, num_keys: int, sliding_window: int | None) -> torch.Tensor:
        """What is added to scores: float32 [rows, 1, keys], -inf where a row may not look; the same
        for every layer of a window.
        """
        if sliding_window not in self._biases:
            positions = torch.arange(num_keys, device=self.lens.device)
            hidden = positions >= self.lens[:, None]
            if sliding_window is not None:
                hidden |= positions < self.lens[:, None] - sliding_window
            zeros = torch.zeros(hidden.shape, device=hidden.device)
            self._biases[sliding_window] = zeros.masked_fill_(hidden, -math.inf)[:, None]
        return self._biases[sliding_window]


@dataclass(slots=True)
class PrefillChunk:
    """Several new tokens of one row. `num_context` tokens precede them in the cache; `blocks`: [1,
    blocks].
    """

    start: int
    end: int
    num_context: int
    blocks: torch.Tensor
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def mask(self, sliding_window: int | None) -> torch.Tensor | None:
        """True where a query may look, [tokens, keys]; None where plain causal attention says the
        same.
        """
        if sliding_window not in self._masks:
            self._masks[sliding_window] = self._make_mask(sliding_window)
        return self._masks[sliding_window]

    def _make_mask(self, sliding_window: int | None) -> torch.Tensor | None:
        num_keys = self.num_context + self.end - self.start
        if self.num_context == 0 and (sliding_window is None or sliding_window >= num_keys):
            return None
        device = self.blocks.device
        queries = torch.arange(self.num_context, num_keys, device=device)[:, None]
        keys = torch.arange(num_keys, device=device)
        visible = keys <= queries
        if sliding_window is not None:
            visible &= keys > queries - sliding_window
        return visible


@dataclass(slots=True)
class Batch:
    """A packed step: all rows' new tokens one after the other, decode rows first.

    `token_ids`, `positions`, `slots`: [tokens]; `work` is in the packed order, `starts[i]` is where
    `work[i]` begins. Layer `i` of the model keeps its keys and values in layer `layers[i]` of the
    cache. Attention notes in `written` which layers wrote there.
    """

    work: list[RowWork]
    starts: list[int]
    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    buckets: list[DecodeBucket]
    chunks: list[PrefillChunk]
    cache: KVCache
    layers: Sequence[int]
    written: set[int] = field(default_factory=set)

    @property
    def num_tokens(self) -> int:
        """Tokens in the step."""
        return len(self.token_ids)


def pack(
    work: Sequence[RowWork], cache: KVCache, layers: Sequence[int], device: torch.device
) -> Batch:
    """Lay out a step's work for a model with these `layers` of the cache."""
    ordered = sorted(work, key=_packed_order)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts: list[int] = []
    for item in ordered:
        row, begin = item.row, item.row.num_computed
        starts.append(len(token_ids))
        token_ids += row.tokens[begin : begin + item.num_tokens]
        positions += range(begin, begin + item.num_tokens)
        slots += _slots(row.block_table, begin, item.num_tokens, cache.block_size)

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=device)

    return Batch(
        work=ordered,
        starts=starts,
        token_ids=tensor(token_ids),
        positions=tensor(positions),
        slots=tensor(slots),
        buckets=_buckets(ordered, cache.block_size, device),
        chunks=_chunks(ordered, starts, cache.block_size, device),
        cache=cache,
        layers=layers,
    )


def _packed_order(item: RowWork) -> tuple[bool, int]:
    return item.num_tokens > 1, _bucket_of(item) if item.num_tokens == 1 else 0


def _bucket_of(item: RowWork) -> int:
    num_blocks = len(item.row.block_table)
    return 0 if num_blocks <= SHORT_BLOCKS else (num_blocks - 1).bit_length()


def _slots(block_table: list[int], begin: int, count: int, size: int) -> list[int]:
    return [
        block_table[position // size] * size + position % size
        for position in range(begin, begin + count)
    ]


def _buckets(ordered: list[RowWork], size: int, device: torch.device) -> list[DecodeBucket]:
    buckets: list[DecodeBucket] = []
    decoding = [item for item in ordered if item.num_tokens == 1]
    start = 0
    while start < len(decoding):
        bucket = _bucket_of(decoding[start])
        end = start
        while end < len(decoding) and _bucket_of(decoding[end]) == bucket:
            end += 1
        rows = [item.row for item in decoding[start:end]]
        lens = [row.num_computed + 1 for row in rows]
        width = -(-max(lens) // size)
        # padded with the row's own block: a row reads nothing that another row wrote
        blocks = [(row.block_table + row.block_table[-1:] * width)[:width] for row in rows]
        buckets.append(
            DecodeBucket(
                start,
                end,
                torch.tensor(blocks, device=device),
                torch.tensor(lens, device=device),
            )
        )
        start = end
    return buckets


def _chunks(
    ordered: list[RowWork], starts: list[int], size: int, device: torch.device
) -> list[PrefillChunk]:
    chunks: list[PrefillChunk] = []
    for item, start in zip(ordered, starts, strict=True):
        if item.num_tokens > 1:
            width = -(-(item.row.num_computed + item.num_tokens) // size)
            blocks = torch.tensor([item.row.block_table[:width]], device=device)
            chunks.append(
                PrefillChunk(start, start + item.num_tokens, item.row.num_computed, blocks)
            )
    return chunks
