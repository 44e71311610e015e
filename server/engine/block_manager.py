"""Accounts for KV blocks: ids, reference counts and prefix keys. It never sees a tensor.

A block is free, or held by one or more rows. A full block has a *key*, the hash of the weights'
digest and of every token up to its end, so a block is reused only where the same weights read the
same text. A free block keeps its key (and its content) until it is handed out again, oldest first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

Key = bytes


def block_keys(digest: str, tokens: Sequence[int], block_size: int, parents: list[Key]) -> None:
    """Extend `parents`, the keys of the first full blocks of `tokens`, to all its full blocks."""
    for index in range(len(parents), len(tokens) // block_size):
        parent = parents[-1] if parents else digest.encode()
        block = tokens[index * block_size : (index + 1) * block_size]
        content = np.asarray(block, dtype=np.int64).tobytes()
        parents.append(blake2b(parent + content, digest_size=16).digest())


class BlockManager:
    """Hands out block ids `0 … num_blocks - 1`."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._reference_counts = [0] * num_blocks
        self._keys: list[Key | None] = [None] * num_blocks
        self._block_by_key: dict[Key, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that no row holds; cached ones count, since they can be handed out."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that rows hold, from 0 to 1."""
        return 1 - len(self._free) / self.num_blocks

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, the least recently freed first. Their cached content is
        forgotten.
        """
        assert count <= self.num_free, "the caller must check num_free"
        return [self._take_oldest() for _ in range(count)]

    def _take_oldest(self) -> int:
        block, _ = self._free.popitem(last=False)
        key = self._keys[block]
        if key is not None:
            del self._block_by_key[key]
            self._keys[block] = None
        self._reference_counts[block] = 1
        return block

    def match(self, keys: Sequence[Key]) -> list[int]:
        """The cached blocks of the longest prefix of `keys`. Nothing is taken."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_by_key.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_free_after_sharing(self, blocks: Sequence[int]) -> int:
        """What `num_free` becomes if `blocks` (from `match`) are shared."""
        return self.num_free - sum(self._reference_counts[block] == 0 for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """Take a reference to each of `blocks`, which came from `match`."""
        for block in blocks:
            if self._reference_counts[block] == 0:
                del self._free[block]
            self._reference_counts[block] += 1

    def publish(self, block: int, key: Key) -> None:
        """Say that `block` holds what `key` names. The first block of a key stays its only one."""
        if key not in self._block_by_key and self._keys[block] is None:
            self._block_by_key[key] = block
            self._keys[block] = key

    def free(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each block. The end of a prefix is freed first, so it is
        evicted first.
        """
        for block in reversed(blocks):
            self._reference_counts[block] -= 1
            assert self._reference_counts[block] >= 0, f"block {block} freed twice"
            if self._reference_counts[block] == 0:
                self._free[block] = None
                if self._keys[block] is None:  # holds nothing worth keeping: hand it out first
                    self._free.move_to_end(block, last=False)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Assert that the counts equal what the rows hold. For tests, and for an idle engine."""
        counts = [0] * self.num_blocks
        for blocks in held:
            for block in blocks:
                counts[block] += 1
        assert counts == self._reference_counts
        assert set(self._free) == {block for block, count in enumerate(counts) if count == 0}
        assert all(self._keys[block] == key for key, block in self._block_by_key.items())
