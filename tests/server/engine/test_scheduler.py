"""The scheduler decides without a model."""

import pytest
import torch

from merging.blend import Blend
from server.engine.config import EngineConfig
from server.engine.detokenizer import Detokenizer
from server.engine.group import Group
from server.engine.request import Member, Request, SamplingParams
from server.engine.scheduler import Scheduler
from server.engine.step_plan import StepPlan

BASE = Blend("base", (), torch.zeros(0, 0))


def make_scheduler(**options: int) -> Scheduler:
    """A scheduler with 20 blocks of 4 tokens, 4 rows and 8 tokens a step."""
    settings = {"num_blocks": 20, "block_size": 4, "max_rows": 4, "max_step_tokens": 8}
    return Scheduler(EngineConfig(max_model_len=60, **{**settings, **options}))


def add(scheduler: Scheduler, *lengths: int, start: int = 0, **sampling: object) -> Group:
    """Queue a group with one row for each length; prompts of different `start` share nothing."""
    members = tuple(Member(tuple(range(start, start + length)), BASE) for length in lengths)
    return queue(scheduler, members, SamplingParams(**sampling))  # type: ignore[arg-type]


def add_background(scheduler: Scheduler, length: int, num_rows: int = 1, start: int = 0) -> Group:
    """The same in the background, with rows that share nothing."""
    members = tuple(
        Member(tuple(range(begin, begin + length)), BASE)
        for begin in range(start, start + num_rows * length, length)
    )
    return queue(scheduler, members, SamplingParams(max_tokens=100), priority="background")


def queue(
    scheduler: Scheduler, members: tuple[Member, ...], params: SamplingParams, **options: object
) -> Group:
    """Queue a request."""
    rule = None if len(members) == 1 else (lambda logits: logits[0])
    request = Request(members, params, rule=rule, **options)  # type: ignore[arg-type]
    group = Group(request, Detokenizer(lambda ids: "", (), ()))
    scheduler.add(group)
    return group


def advance(scheduler: Scheduler) -> StepPlan:
    """Plan a step, pretend that it was computed, and give every ready group a token."""
    plan = scheduler.schedule()
    scheduler.computed(plan)
    for group in scheduler.running:
        if group.is_ready:
            for row in group.rows:
                row.tokens.append(1)
    return plan


def shares(plan: StepPlan) -> list[tuple[Group, int]]:
    """Who gets how many tokens."""
    return [(item.group, item.num_tokens) for item in plan.work]


def test_long_prompts_are_read_in_chunks() -> None:
    """A prompt longer than a step's tokens takes several steps."""
    scheduler = make_scheduler()
    group = add(scheduler, 19)
    assert [[(group, 8)], [(group, 8)], [(group, 3)]] == [
        shares(advance(scheduler)) for _ in range(3)
    ]


def test_decoding_comes_before_prefill() -> None:
    """A running stream gets its token in every step, however long a prompt is being read."""
    scheduler = make_scheduler()
    reading = add(scheduler, 20)
    advance(scheduler)
    stream = add(scheduler, 7, start=100)
    plans = [shares(advance(scheduler)) for _ in range(5)]
    assert [(reading, 4), (stream, 4)] == plans[1]
    long = add(scheduler, 30, start=200)
    assert [(reading, 1), (stream, 1), (long, 6)] == shares(advance(scheduler))
    assert [(reading, 1), (stream, 1), (long, 6)] == shares(advance(scheduler))


def test_rows_are_bounded_and_a_group_is_admitted_whole() -> None:
    """A group waits until all its rows fit."""
    scheduler = make_scheduler()
    first, second, third = (
        add(scheduler, 2, 2),
        add(scheduler, 2, 2, 2, start=9),
        add(scheduler, 2, start=20),
    )
    scheduler.schedule()
    assert ([first], [second, third]) == (scheduler.running, list(scheduler.waiting))


def test_groups_start_in_order_of_arrival() -> None:
    """Nobody overtakes the first of the queue for want of blocks."""
    scheduler = make_scheduler()
    big, bigger, small = (
        add(scheduler, 40),
        add(scheduler, 50, start=100),
        add(scheduler, 2, start=300),
    )
    scheduler.schedule()
    assert [big] == scheduler.running
    assert [bigger, small] == list(scheduler.waiting)


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    """When decoding runs out of blocks, the youngest group gives all of its back and waits at the
    front.
    """
    scheduler = make_scheduler(num_blocks=16, max_step_tokens=64)
    old, young = add(scheduler, 31), add(scheduler, 31, start=100)
    advance(scheduler)
    later = add(scheduler, 3, start=200)
    plans = [advance(scheduler) for _ in range(3)]
    assert [group for plan in plans for group in plan.preempted] == [young]
    assert [old] == scheduler.running
    assert [young, later] == list(scheduler.waiting)
    assert young.num_preemptions == 1
    assert all(item.group is old for item in plans[-1].work)


def test_a_group_is_preempted_whole() -> None:
    """All rows of a group give back their blocks together, and its planned work is withdrawn."""
    scheduler = make_scheduler(max_step_tokens=64)
    old, pair = add(scheduler, 23), add(scheduler, 16, 16, start=100)
    for _ in range(12):
        plan = advance(scheduler)
        if plan.preempted:
            break
    assert [old] == scheduler.running
    assert all(not row.block_table and row.num_computed == 0 for row in pair.rows)
    scheduler.blocks.check_integrity([row.block_table for row in old.rows])


def test_a_cached_prefix_is_not_computed_again() -> None:
    """The full blocks of a prompt read before are shared; the last token is always computed."""
    scheduler = make_scheduler()
    first = add(scheduler, 8)
    advance(scheduler)
    scheduler.finish(first)
    second = add(scheduler, 8)
    plan = scheduler.schedule()
    assert [(second, 4)] == shares(plan)
    assert (plan.prefix_queries, plan.prefix_hits) == (8, 4)


def test_prompts_to_be_scored_are_computed_whole() -> None:
    """A group that wants prompt log-probabilities reuses nothing: it needs all logits."""
    scheduler = make_scheduler()
    first = add(scheduler, 8)
    advance(scheduler)
    scheduler.finish(first)
    scored = add(scheduler, 8, prompt_logprobs=0)
    assert [(scored, 8)] == shares(scheduler.schedule())


def test_a_twin_waits_for_the_prompt_that_is_being_read() -> None:
    """A group whose next block is just being computed starts once it can share it, and others pass
    it meanwhile.
    """
    scheduler = make_scheduler()
    first, twin, other = add(scheduler, 13), add(scheduler, 13), add(scheduler, 2, start=50)
    advance(scheduler)
    assert [first] == scheduler.running
    advance(scheduler)
    assert {first, other} <= set(scheduler.running)
    advance(scheduler)
    assert twin.num_cached_tokens == 12


def test_finishing_a_waiting_group_takes_it_from_the_queue() -> None:
    """A group that is aborted before it started leaves nothing behind."""
    scheduler = make_scheduler()
    group = add(scheduler, 3)
    scheduler.finish(group)
    assert not scheduler.has_work
    scheduler.blocks.check_integrity([])


@pytest.mark.parametrize("length", [1, 4, 5])
def test_blocks_are_taken_as_tokens_need_them(length: int) -> None:
    """A row holds exactly the blocks that its computed tokens need."""
    scheduler = make_scheduler()
    group = add(scheduler, length)
    for _ in range(9):
        advance(scheduler)
        (row,) = group.rows
        assert -(-row.num_computed // 4) == len(row.block_table)


def test_background_groups_wait_for_live_ones_that_wait() -> None:
    """No background group starts while a live one is in the queue, though it would fit."""
    scheduler = make_scheduler(live_memory=1)
    running, waiting = add(scheduler, 2, 2, 2), add(scheduler, 2, 2, start=50)
    background = add_background(scheduler, 3, start=100)
    for _ in range(3):
        advance(scheduler)
        assert (scheduler.running, list(scheduler.waiting)) == ([running], [waiting, background])
    scheduler.finish(running)
    advance(scheduler)
    assert background not in scheduler.running
    advance(scheduler)
    assert scheduler.running == [waiting, background]


def test_background_groups_add_few_tokens_to_live_steps() -> None:
    """While live groups decode, all background ones together get what idle rows and the limit
    allow; while one reads its prompt, nothing; alone, everything.
    """
    scheduler = make_scheduler(max_rows=8, max_background_tokens=3, num_blocks=60, live_memory=1)
    background = [add_background(scheduler, 20, start=100 * i) for i in range(1, 3)]
    assert shares(advance(scheduler)) == [(background[0], 8)]
    live = add(scheduler, 5)
    assert shares(advance(scheduler)) == [(live, 5)]
    assert shares(advance(scheduler)) == [(live, 1), (background[0], 3)]
    crowd = [add(scheduler, 1, start=300 + i) for i in range(6)]
    assert shares(advance(scheduler)) == [
        *((group, 1) for group in (live, *crowd)),
        (background[0], 1),
    ]
    for group in (live, *crowd):
        scheduler.finish(group)
    assert shares(advance(scheduler)) == [(background[0], 8)]


def test_a_row_that_a_live_group_left_is_kept_free_for_a_while() -> None:
    """At full load nothing of the background starts between one live request and the next; when
    live groups stay away for `live_memory` steps, it gets on, and alone it has whole steps.
    """
    scheduler = make_scheduler(max_rows=2, max_background_tokens=3, live_memory=4)
    stays, leaves = add(scheduler, 1), add(scheduler, 1, start=50)
    background = add_background(scheduler, 20, start=100)
    advance(scheduler)
    scheduler.finish(leaves)
    for _ in range(3):
        assert shares(advance(scheduler)) == [(stays, 1)]
    assert shares(advance(scheduler)) == [(stays, 1), (background, 1)]
    scheduler.finish(stays)
    for _ in range(3):
        assert shares(advance(scheduler)) == [(background, 3)]
    assert shares(advance(scheduler)) == [(background, 8)]


def test_background_groups_give_way() -> None:
    """A live group that needs their rows or blocks gets them in the step in which it comes, the
    youngest background group's first.
    """
    scheduler = make_scheduler(num_blocks=18, max_step_tokens=64)
    first, second = (add_background(scheduler, 8, 2, start=100 * i) for i in (1, 2))
    advance(scheduler)
    assert scheduler.running == [first, second]
    live = add(scheduler, 2)
    assert shares(advance(scheduler)) == [(live, 2)]
    assert scheduler.running == [first, live]
    big = add(scheduler, 58, start=300)
    advance(scheduler)
    assert scheduler.running == [live, big]
    assert list(scheduler.waiting) == [first, second]


def test_background_groups_never_take_from_live_ones() -> None:
    """When a background group runs out of blocks it gives up its own, however old it is."""
    scheduler = make_scheduler(num_blocks=16, max_step_tokens=64)
    background = add_background(scheduler, 15, start=100)
    advance(scheduler)
    live = add(scheduler, 44)
    for _ in range(14):
        plan = advance(scheduler)
        assert live not in plan.preempted
    assert background.num_preemptions > 0
    assert live in scheduler.running


def test_background_groups_end_when_live_traffic_does() -> None:
    """However often it was put back, a background group is finished once there is room."""
    scheduler = make_scheduler(max_rows=4, num_blocks=20, max_step_tokens=16)
    background = [add_background(scheduler, 20, 2, start=100 * i) for i in (1, 2, 3)]
    for turn in range(30):
        live = add(scheduler, 9, 9, 9, start=1000 + 10 * turn)
        for _ in range(3):
            advance(scheduler)
        scheduler.finish(live)
    done: list[Group] = []
    for _ in range(100):
        advance(scheduler)
        done += [group for group in scheduler.running if len(group.rows[0].tokens) > 24]
        for group in [group for group in done if group in scheduler.running]:
            scheduler.finish(group)
    assert set(background) == set(done)
    assert not scheduler.has_work
    scheduler.blocks.check_integrity([])


def test_a_reader_of_many_rows_gets_on_beside_live_groups() -> None:
    """A background text under more members than `max_background_tokens` is read position by
    position while live groups decode, if its rows are idle; not on rows that they hold.
    """
    scheduler = make_scheduler(max_rows=6, max_background_tokens=2, num_blocks=60, live_memory=2)
    members = tuple(Member((start, 1, 2, 3, 4, 5), BASE) for start in range(50, 54))
    live, other = add(scheduler, 2), add(scheduler, 2, 2, start=300)
    advance(scheduler)
    scheduler.finish(other)
    reader = queue(
        scheduler,
        members,
        SamplingParams(max_tokens=0),
        reader=lambda begin, logits: None,
        num_read=5,
        priority="background",
    )
    assert shares(advance(scheduler)) == [(live, 1)]  # 3 rows of 6 were held a step ago
    assert shares(advance(scheduler)) == [(live, 1), *[(reader, 1)] * 4]
