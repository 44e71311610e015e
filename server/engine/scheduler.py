"""Decides which groups run in a step and with how many tokens. It admits, preempts and frees; it
never sees a tensor.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from merging.adapter import Adapter
from merging.blend import Blend
from server.engine.block_manager import BlockManager, Key
from server.engine.config import EngineConfig
from server.engine.group import Group, Row
from server.engine.request import Priority
from server.engine.slab import widest_rank
from server.engine.step_plan import RowWork, StepPlan


class Scheduler:
    """Two queues, `waiting` and `running`, both in order of arrival.

    Running groups come first: one token for each row that decodes, then prefill chunks, then
    newcomers, until the step's tokens are used up. A group gets the blocks of all its tokens when
    it starts, so only decoding asks for more; when they run out, the youngest running group gives
    its blocks back and waits at the front.

    Background groups come after the live ones and get what `_background_budget` leaves them. They
    give way to whatever live group needs their rows or blocks, and take none from any.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = BlockManager(config.num_blocks)
        self.waiting: deque[Group] = deque()
        self.running: list[Group] = []
        self._live_rows: deque[int] = deque(maxlen=config.live_memory)  # of the last steps

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

    def has(self, group: Group) -> bool:
        """Whether a group waits or runs."""
        return group in self.running or group in self.waiting

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
        self._schedule("live", self.config.max_step_tokens, plan)
        self._live_rows.append(sum(len(group.rows) for group in self._of("live", self.running)))
        self._schedule("background", self._background_budget(plan), plan)
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

    def _schedule(self, priority: Priority, budget: int, plan: StepPlan) -> None:
        """Plan the groups of one priority, the running ones and then newcomers."""
        running = self._of(priority, self.running)
        for group in sorted(running, key=lambda group: not group.is_decoding):
            if group in self.running:  # it may have been preempted for an older one
                budget -= self._schedule_running(group, budget, plan)
        self._admit(priority, budget, plan)

    def _of(self, priority: Priority, groups: Iterable[Group]) -> list[Group]:
        return [group for group in groups if group.request.priority == priority]

    def _background_budget(self, plan: StepPlan) -> int:
        """Tokens that background groups may add to the step.

        While live groups run these are few, since everybody waits for the step's end, and none
        while one of them waits or reads its prompt. A row that a live group has just left is not
        idle yet: the caller's next request is on its way, and would have to take it back.
        """
        if self._of("live", self.waiting) or any(item.num_tokens > 1 for item in plan.work):
            return 0
        num_held = max(self._live_rows)
        if num_held == 0:
            return self.config.max_step_tokens
        if not self._of("live", self.running):
            return self.config.max_background_tokens
        return min(self.config.max_rows - num_held, self.config.max_background_tokens)

    def _schedule_running(self, group: Group, budget: int, plan: StepPlan) -> int:
        """Plan one running group's rows; returns the tokens used."""
        used = 0
        for row, num_tokens in zip(group.rows, self._shares(group, budget, plan), strict=True):
            if num_tokens == 0:
                continue
            if not self._reserve(group, row, num_tokens, plan):
                return used  # the group itself was preempted
            plan.work.append(RowWork(group, row, num_tokens))
            used += num_tokens
        return used

    def _shares(self, group: Group, budget: int, plan: StepPlan) -> list[int]:
        """How many tokens each row gets: all rows advance together over a text that is read."""
        shares: list[int] = []
        for row in group.rows:
            pending = group.first_logits(row) - row.num_computed
            pending += not group.is_reading  # the last token
            shares.append(max(min(pending, budget - sum(shares)), 0))
        if not group.is_reading:
            return shares
        are_level = all(
            row.num_computed + share == group.first_logits(row)
            for row, share in zip(group.rows, shares, strict=True)
        )
        left = min(budget - sum(shares), self.config.max_prompt_logits - plan.num_read)
        together = min(max(left, 0) // len(shares), group.num_unread + 1)
        if not are_level:
            together = 0
        elif budget > 0 and not any(shares) and self._must_read(group, plan):
            together = max(together, 1)
        plan.num_read += together * len(shares)
        return [share + together for share in shares]

    def _must_read(self, group: Group, plan: StepPlan) -> bool:
        """Whether a reader gets a position, however many rows it has: it must get on. Beside live
        groups the first one of the background does, on rows that are idle.
        """
        if not plan.work:
            return True
        is_first = group.is_background and not any(w.group.is_background for w in plan.work)
        return is_first and len(group.rows) <= self.config.max_rows - max(self._live_rows)

    def _reserve(self, group: Group, row: Row, num_tokens: int, plan: StepPlan) -> bool:
        """Give `row` the blocks for `num_tokens` more tokens, preempting younger groups, at worst
        its own.
        """
        needed = self._num_blocks(row.num_computed + num_tokens) - len(row.block_table)
        while needed > self.blocks.num_free:
            victim = self._last_background() or self.running[-1]
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
        plan.preempted.append(group)
        plan.work = [item for item in plan.work if item.group is not group]

    def _free(self, group: Group) -> None:
        for row in group.rows:
            self.blocks.free(row.block_table)
            row.block_table = []
            row.num_computed = 0

    def _last_background(self) -> Group | None:
        return next((group for group in reversed(self.running) if group.is_background), None)

    def _admit(self, priority: Priority, budget: int, plan: StepPlan) -> None:
        """Start waiting groups, oldest first, while rows, ranks, blocks and tokens last."""
        being_computed = self._keys_being_computed(priority)
        for group in self._of(priority, self.waiting):
            if budget <= 0 or group in plan.preempted:
                return
            if self._should_share_later(group, being_computed):
                continue
            if not self._make_room(group, plan):
                return
            self._start(group, plan)
            budget -= self._schedule_running(group, budget, plan)
            being_computed.update(self._next_keys(group))

    def _make_room(self, group: Group, plan: StepPlan) -> bool:
        """Whether `group` can start, if need be after background groups gave way to a live one."""
        while not self._fits(group):
            victim = self._last_background()
            if victim is None or group.is_background:
                return False
            self._preempt(victim, plan)
        return True

    def _fits(self, group: Group) -> bool:
        """Whether there are rows, ranks and blocks for `group`."""
        if self.num_rows + len(group.rows) > self.config.max_rows:
            return False
        if self.running and active_rank([*self.running, group]) > self.config.max_active_rank:
            return False
        shared = [self._cached_prefix(group, row) for row in group.rows]
        num_needed = sum(self._num_blocks(len(row.tokens)) for row in group.rows)
        num_needed -= sum(len(blocks) for blocks in shared)
        all_shared = list(dict.fromkeys(block for blocks in shared for block in blocks))
        return num_needed <= self.blocks.num_free_after_sharing(all_shared)

    def _start(self, group: Group, plan: StepPlan) -> None:
        """Share the cached prefix, allocate the rest and move the group to `running`."""
        shared = [self._cached_prefix(group, row) for row in group.rows]
        for blocks in shared:  # before any is allocated: allocation forgets what is free
            self.blocks.share(blocks)
        for row, blocks in zip(group.rows, shared, strict=True):
            count = self._num_blocks(len(row.tokens)) - len(blocks)
            row.block_table = blocks + self._allocate(count, plan)
            row.num_computed = len(blocks) * self.config.block_size
            plan.prefix_queries += len(row.tokens)
            plan.prefix_hits += row.num_computed
        if group.num_preemptions == 0:
            group.num_cached_tokens = group.rows[0].num_computed
        self.waiting.remove(group)
        self.running.append(group)
        group.timing.start()

    def _cached_prefix(self, group: Group, row: Row) -> list[int]:
        """Cached blocks to reuse."""
        return self.blocks.match(self._usable_keys(group, row))

    def _usable_keys(self, group: Group, row: Row) -> list[Key]:
        """Keys of the blocks that need not be computed: those before the first logits."""
        num_usable = group.first_logits(row) // self.config.block_size
        return row.prefix_keys(self.config.block_size)[:num_usable]

    def _next_keys(self, group: Group) -> Iterator[Key]:
        """The first key of each row that is still to be computed."""
        for row in group.rows:
            keys = row.prefix_keys(self.config.block_size)
            index = row.num_computed // self.config.block_size
            if index < len(keys):
                yield keys[index]

    def _keys_being_computed(self, priority: Priority) -> set[Key]:
        running = self._of(priority, self.running)
        return {key for group in running for key in self._next_keys(group)}

    def _should_share_later(self, group: Group, being_computed: set[Key]) -> bool:
        """Whether a running row is just computing the block that this group would compute next.

        Then waiting a step or two is cheaper than computing it twice: the `n` choices of one prompt
        start this way.
        """
        if not being_computed:
            return False
        for row in group.rows:
            keys = self._usable_keys(group, row)
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
