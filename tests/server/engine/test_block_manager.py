"""The block manager's books are right whatever is asked of it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.block_manager import BlockManager, block_keys


def keys_of(tokens: list[int], digest: str = "d") -> list[bytes]:
    """Keys of the full blocks of two tokens."""
    keys: list[bytes] = []
    block_keys(digest, tokens, 2, keys)
    return keys


def test_keys_depend_on_weights_and_on_all_that_came_before() -> None:
    """Equal blocks after different beginnings, or under different weights, have different keys."""
    assert keys_of([1, 2, 5, 6])[1] != keys_of([3, 4, 5, 6])[1]
    assert keys_of([1, 2]) != keys_of([1, 2], "other")
    assert keys_of([1, 2, 3]) == keys_of([1, 2])


def test_keys_are_extended_not_made_again() -> None:
    """Keys made for a beginning are kept when tokens are added."""
    keys = keys_of([1, 2, 3])
    block_keys("d", [1, 2, 3, 4], 2, keys)
    assert keys_of([1, 2, 3, 4]) == keys


def test_freed_blocks_are_reused_until_handed_out() -> None:
    """A published block is found after it was freed, and forgotten once it is allocated again."""
    manager = BlockManager(2)
    (block,) = manager.allocate(1)
    (key,) = keys_of([1, 2])
    manager.publish(block, key)
    manager.free([block])
    assert [block] == manager.match([key])
    manager.allocate(2)
    assert manager.match([key]) == []


def test_the_oldest_cached_block_is_handed_out_first() -> None:
    """Blocks that hold nothing go first, then cached ones in the order in which they were freed."""
    manager = BlockManager(3)
    first, second, third = manager.allocate(3)
    keys = keys_of([1, 2, 3, 4])
    manager.publish(first, keys[0])
    manager.publish(second, keys[1])
    for block in (first, second, third):
        manager.free([block])
    assert [third, first, second] == manager.allocate(3)


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    """Of one row's blocks the last is handed out first: a beginning is worth more than an end."""
    manager = BlockManager(2)
    blocks = manager.allocate(2)
    for block, key in zip(blocks, keys_of([1, 2, 3, 4]), strict=True):
        manager.publish(block, key)
    manager.free(blocks)
    assert [blocks[1]] == manager.allocate(1)


def test_freeing_twice_is_a_bug() -> None:
    """Our own mistakes are asserted."""
    manager = BlockManager(1)
    blocks = manager.allocate(1)
    manager.free(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        manager.free(blocks)


class Books(RuleBasedStateMachine):
    """Random rows that share, allocate, publish and free."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(6)
        self.rows: list[tuple[list[int], list[bytes]]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=8))
    def start(self, tokens: list[int]) -> None:
        """A row shares what is cached and allocates the rest, if it fits."""
        keys = keys_of(tokens)
        shared = self.manager.match(keys)
        needed = len(keys) - len(shared)
        if needed > self.manager.num_free_after_sharing(shared):
            return
        self.manager.share(shared)
        blocks = shared + self.manager.allocate(needed)
        for block, key in zip(blocks, keys, strict=True):
            self.manager.publish(block, key)
        self.rows.append((blocks, keys))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Some row gives its blocks back."""
        index = data.draw(st.integers(0, len(self.rows) - 1))
        self.manager.free(self.rows.pop(index)[0])

    @invariant()
    def books_are_right(self) -> None:
        """Counts equal what rows hold, and a key never names another key's block."""
        self.manager.check_integrity([blocks for blocks, _ in self.rows])


Books.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestBooks = Books.TestCase
