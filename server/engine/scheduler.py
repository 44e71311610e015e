"""Decides which groups run in a step and with how many tokens. It admits, preempts and frees; it
never sees a tensor.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from merging.adapter import Adapter
from merging.blend import Blend
from server.engine.block_manager import BlockManager, Key
from server.engine.config import EngineConfig
from server.engine.group import Group, Row
from server.engine.slab import widest_rank


@dataclass(slots=True, eq=False)
class RowWork:
    """One row's share of a step: `num_tokens` tokens from `row.num_computed` on."""

    group: Group
    row: Row
    num_tokens: int

    @property
    def completes(self) -> bool:
        """Whether the row has no token left to compute after this step."""
        return self.num_tokens == self.row.num_pending


@dataclass(slots=True)
class StepPlan:
    """What a step does, and what was seen while planning it.

    `new_blocks` are those that rows were given; they hold what their last row left behind.
    """

    work: list[RowWork] = field(default_factory=list)
    new_blocks: list[int] = field(default_factory=list)
    num_prompt_logits: int = 0
    num_preempted: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the model."""
        return sum(item.num_tokens for item in self.work)


class Scheduler:
    """Two queues, `waiting` and `running`, both in order of arrival.

    Running groups come first: one token for each row that decodes, then prefill chunks, then
    newcomers, until the step's tokens are used up. A group gets the blocks of all its tokens when
    it starts, so only decoding asks for more; when they run out, the youngest running group gives
    its blocks back and waits at the front.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = BlockManager(config.num_blocks)
        self.waiting: deque[Group] = deque()
        self.running: list[Group] = []

    @property
    def num_rows(self) -> int:
        """Rows of the running groups."""
        return sum(len(group.rows) for group in self.running)

    @property
    def has_work(self) -> bool:
        """Whether any group waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, group: Group) -> None:
        """Put a new group at the end of the queue."""
        self.waiting.append(group)

    def finish(self, group: Group) -> None:
        """Take a group out, running or waiting, and free its blocks."""
        if group in self.running:
            self.running.remove(group)
        else:
            self.waiting.remove(group)
        self._free(group)

    def schedule(self) -> StepPlan:
        """Plan the next step."""
        plan = StepPlan()
        budget = self.config.max_step_tokens
        for group in sorted(self.running, key=lambda group: not group.is_decoding):
            if group in self.running:  # it may have been preempted for an older one
                budget -= self._schedule_running(group, budget, plan)
        self._admit(budget, plan)
        return plan

    def computed(self, plan: StepPlan) -> None:
        """Note that the planned tokens are in the cache, and publish blocks that became full."""
        size = self.config.block_size
        for item in plan.work:
            row = item.row
            first_full = row.num_computed // size
            row.num_computed += item.num_tokens
            keys = row.prefix_keys(size)
            for index in range(first_full, row.num_computed // size):
                self.blocks.publish(row.block_table[index], keys[index])

    def _schedule_running(self, group: Group, budget: int, plan: StepPlan) -> int:
        """Plan one running group's rows; returns the tokens used."""
        used = 0
        for row in group.rows:
            num_tokens = min(row.num_pending, self._chunk_limit(group, plan), budget - used)
            if num_tokens <= 0:
                continue
            if not self._reserve(group, row, num_tokens, plan):
                return used  # the group itself was preempted
            plan.work.append(RowWork(group, row, num_tokens))
            used += num_tokens
            if group.wants_prompt_logprobs:
                plan.num_prompt_logits += num_tokens
        return used

    def _chunk_limit(self, group: Group, plan: StepPlan) -> int:
        if group.wants_prompt_logprobs:
            return self.config.max_prompt_logits - plan.num_prompt_logits
        return self.config.max_step_tokens

    def _reserve(self, group: Group, row: Row, num_tokens: int, plan: StepPlan) -> bool:
        """Give `row` the blocks for `num_tokens` more tokens, preempting younger groups, at worst
        its own.
        """
        needed = self._num_blocks(row.num_computed + num_tokens) - len(row.block_table)
        while needed > self.blocks.num_free:
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is group:
                return False
        row.block_table += self._allocate(max(needed, 0), plan)
        return True

    def _allocate(self, count: int, plan: StepPlan) -> list[int]:
        blocks = self.blocks.allocate(count)
        plan.new_blocks += blocks
        return blocks

    def _preempt(self, group: Group, plan: StepPlan) -> None:
        """Send a group back to the front of the queue; what it had computed is computed again
        later.
        """
        self.running.remove(group)
        self.waiting.appendleft(group)
        self._free(group)
        group.num_preemptions += 1
        plan.num_preempted += 1
        plan.work = [item for item in plan.work if item.group is not group]

    def _free(self, group: Group) -> None:
        for row in group.rows:
            self.blocks.free(row.block_table)
            row.block_table = []
            row.num_computed = 0

    def _admit(self, budget: int, plan: StepPlan) -> None:
        """Start waiting groups, oldest first, while rows, ranks, blocks and tokens last."""
        being_computed = self._keys_being_computed()
        for group in list(self.waiting):
            if budget <= 0 or plan.num_preempted or not self._has_room(group):
                return
            if self._should_share_later(group, being_computed):
                continue
            if not self._start(group, plan):
                return
            budget -= self._schedule_running(group, budget, plan)
            being_computed.update(self._next_keys(group))

    def _has_room(self, group: Group) -> bool:
        if self.num_rows + len(group.rows) > self.config.max_rows:
            return False
        rank = active_rank([*self.running, group])
        return not self.running or rank <= self.config.max_active_rank

    def _start(self, group: Group, plan: StepPlan) -> bool:
        """Share the cached prefix, allocate the rest and move the group to `running`, if the free
        blocks suffice.
        """
        shared = [self._cached_prefix(group, row) for row in group.rows]
        needed = [
            self._num_blocks(len(row.tokens)) - len(blocks)
            for row, blocks in zip(group.rows, shared, strict=True)
        ]
        all_shared = list(dict.fromkeys(block for blocks in shared for block in blocks))
        if sum(needed) > self.blocks.num_free_after_sharing(all_shared):
            return False
        for blocks in shared:  # before any is allocated: allocation forgets what is free
            self.blocks.share(blocks)
        for row, blocks, count in zip(group.rows, shared, needed, strict=True):
            row.block_table = blocks + self._allocate(count, plan)
            row.num_computed = len(blocks) * self.config.block_size
            plan.prefix_queries += len(row.tokens)
            plan.prefix_hits += row.num_computed
        if group.num_preemptions == 0:
            group.num_cached_tokens = group.rows[0].num_computed
        self.waiting.remove(group)
        self.running.append(group)
        group.timing.start()
        return True

    def _cached_prefix(self, group: Group, row: Row) -> list[int]:
        """Cached blocks to reuse. The last token is always computed, for its logits."""
        if group.wants_prompt_logprobs:
            return []
        usable = (len(row.tokens) - 1) // self.config.block_size
        return self.blocks.match(row.prefix_keys(self.config.block_size)[:usable])

    def _next_keys(self, group: Group) -> Iterator[Key]:
        """The first key of each row that is still to be computed."""
        for row in group.rows:
            keys = row.prefix_keys(self.config.block_size)
            index = row.num_computed // self.config.block_size
            if index < len(keys):
                yield keys[index]

    def _keys_being_computed(self) -> set[Key]:
        return {key for group in self.running for key in self._next_keys(group)}

    def _should_share_later(self, group: Group, being_computed: set[Key]) -> bool:
        """Whether a running row is just computing the block that this group would compute next.

        Then waiting a step or two is cheaper than computing it twice: the `n` choices of one prompt
        start this way.
        """
        if not being_computed or group.wants_prompt_logprobs:
            return False
        for row in group.rows:
            usable = (len(row.tokens) - 1) // self.config.block_size
            keys = row.prefix_keys(self.config.block_size)[:usable]
            num_cached = len(self.blocks.match(keys))
            if num_cached < len(keys) and keys[num_cached] in being_computed:
                return True
        return False

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)


def active_adapters(groups: list[Group]) -> dict[str, Adapter]:
    """The adapters that the groups' rows use, by digest; a variant has none."""
    return {
        adapter.digest: adapter
        for group in groups
        for row in group.rows
        if isinstance(row.weights, Blend)
        for adapter in row.weights.adapters
    }


def active_rank(groups: list[Group]) -> int:
    """Summed rank of the adapters that the groups use: what every row on the base pays for."""
    return sum(widest_rank(adapter) for adapter in active_adapters(groups).values())
