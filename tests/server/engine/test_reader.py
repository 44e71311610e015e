"""A given text is read by all rows of its group together, each position once."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ensemble.rule import compile_rule
from merging.blend import Blend
from server.compare.text_reader import Listener, TextReader
from server.engine.group import FAILED, Group
from server.engine.reader import LogprobsReader
from server.engine.request import Member, Reader, Request, SamplingParams
from tests.adapters import blend_of
from tests.server.engine.conftest import (
    Bench,
    make_bench,
    naive_greedy,
    naive_logprobs,
    random_prompt,
)

SCORED = SamplingParams(max_tokens=0)


class Notes:
    """A reader that keeps everything."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, torch.Tensor]] = []

    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        self.parts.append((begin, logits.clone()))

    @property
    def begins(self) -> list[int]:
        """Where each part began."""
        return [begin for begin, _ in self.parts]

    @property
    def sizes(self) -> list[int]:
        """Positions of each part."""
        return [logits.shape[1] for _, logits in self.parts]

    @property
    def logits(self) -> torch.Tensor:
        """[rows, positions, vocab]."""
        return torch.cat([logits for _, logits in self.parts], dim=1).cpu()


def read(
    bench: Bench, members: Sequence[Member], num_read: int, reader: Reader, **options: object
) -> Group:
    """Queue a text to be read."""
    request = Request(tuple(members), SCORED, reader=reader, num_read=num_read, **options)  # type: ignore[arg-type]
    return bench.engine.add(request)


def naive_logits(bench: Bench, member: Member, num_read: int) -> torch.Tensor:
    """What the member's merged model predicts for the last `num_read` tokens of its prompt."""
    model = bench.merged(member.weights)
    with torch.inference_mode():
        inputs = torch.tensor([member.prompt], device=model.device)
        return model(input_ids=inputs).logits[0, -num_read - 1 : -1].cpu()


def assert_read_once(notes: Notes, num_read: int) -> None:
    """Parts follow one another and cover the text."""
    ends = [begin + size for begin, size in zip(notes.begins, notes.sizes, strict=True)]
    assert notes.begins == [0, *ends[:-1]]
    assert ends[-1] == num_read


def test_rows_of_unequal_prompts_read_one_text_together(tmp_path: Path) -> None:
    """Whatever stands before the text in each row, and however it is cut into chunks, the reader
    gets what each row's merged model predicts, at the same positions.
    """
    bench = make_bench(tmp_path)
    object.__setattr__(bench.engine.config, "max_prompt_logits", 12)
    text = random_prompt(29, seed=9)
    adapters = [bench.adapter(1), bench.adapter(2)]
    blends = [bench.empty, *(blend_of(bench.base, {adapter: 1.0}) for adapter in adapters)]
    members = [
        Member((*random_prompt(length, seed=length), *text), blend)
        for length, blend in zip((1, 40, 7), blends, strict=True)
    ]
    notes = Notes()
    beside = bench.add(random_prompt(12))
    read(bench, members, len(text), notes)
    bench.run()
    assert_read_once(notes, len(text))
    assert max(notes.sizes) <= 12 // 3
    for row, member in enumerate(members):
        expected = naive_logits(bench, member, len(text))
        torch.testing.assert_close(notes.logits[row], expected, atol=1e-4, rtol=1e-4)
    assert naive_greedy(bench.merged(bench.empty), random_prompt(12), 12) == beside.output_tokens
    bench.check_integrity()


def test_a_preempted_text_goes_on_where_it_was(tmp_path: Path) -> None:
    """After a preemption the reader gets the positions that it has not seen, and no other."""
    bench = make_bench(tmp_path, kv_memory=0.00004)
    old = bench.add(random_prompt(20), max_tokens=100)
    text = random_prompt(60, seed=2)
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    members = [Member((*random_prompt(8, seed=3), *text), blend)]
    notes = Notes()
    object.__setattr__(bench.engine.config, "max_prompt_logits", 2)
    group = read(bench, members, len(text), notes)
    bench.run()
    assert group.num_preemptions > 0
    assert old.finish_reason == "length"
    assert_read_once(notes, len(text))
    expected = naive_logits(bench, members[0], len(text))
    torch.testing.assert_close(notes.logits[0], expected, atol=1e-4, rtol=1e-4)


def test_what_stands_before_the_text_comes_from_the_cache(bench: Bench) -> None:
    """Only the positions from the first one that is read on are computed again."""
    context, text = random_prompt(33), random_prompt(6, seed=1)
    bench.add(context)
    bench.run()
    notes = Notes()
    member = Member((*context, *text), bench.empty)
    group = read(bench, [member], len(text), notes)
    bench.run()
    assert group.num_cached_tokens == 32
    expected = naive_logits(bench, member, len(text))
    torch.testing.assert_close(notes.logits[0], expected, atol=1e-4, rtol=1e-4)


def test_more_rows_than_one_chunk_has_room_for_still_get_on(tmp_path: Path) -> None:
    """A group with more rows than positions or tokens fit a step reads one position at a time."""
    bench = make_bench(tmp_path, max_step_tokens=3)
    object.__setattr__(bench.engine.config, "max_prompt_logits", 2)
    text = random_prompt(5)
    members = [Member((*random_prompt(2 + i, i), *text), bench.empty) for i in range(6)]
    notes = Notes()
    read(bench, members, len(text), notes)
    bench.run()
    assert set(notes.sizes) == {1}
    assert_read_once(notes, len(text))


def test_a_failing_reader_fails_its_request_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a reader ends its group with an error; others in the batch go on."""

    def fails(begin: int, logits: torch.Tensor) -> None:
        raise ZeroDivisionError

    prompt = random_prompt(9)
    broken = read(bench, [Member(prompt, bench.empty)], 5, fails)
    beside = bench.add(prompt)
    bench.run()
    (output,) = bench.outputs[broken]
    assert (output.finish_reason, output.error) == ("error", FAILED)
    assert "ZeroDivisionError" in caplog.text
    assert naive_greedy(bench.merged(bench.empty), prompt, 12) == beside.output_tokens


def test_a_member_that_overflows_is_named(bench: Bench) -> None:
    """NaN in one member's logits fails the group, and the error says whose they were."""
    huge = blend_of(bench.base, {bench.adapter(1): 1e30})
    prompt = random_prompt(9)
    members = [Member(prompt, bench.empty, "base"), Member(prompt, huge, "pirate")]
    notes = Notes()
    group = read(bench, members, 5, notes)
    bench.run()
    (output,) = bench.outputs[group]
    assert output.error is not None
    assert "the member 'pirate' gave logits that are not finite" in output.error
    assert notes.parts == []


def test_a_reader_that_isolates_rows_keeps_the_finite_ones(bench: Bench) -> None:
    """One row overflows: its voice is an error, the other's log-probabilities are its model's."""
    huge = blend_of(bench.base, {bench.adapter(1): 1e30})
    prompt, text = random_prompt(9), random_prompt(20, 1)
    members = [Member((*prompt, *text), weights) for weights in (bench.empty, huge)]
    reader = TextReader(text, {0: Listener((0,)), 1: Listener((1,))}, [(0, 1)])
    group = read(bench, members, len(text), reader, isolates_rows=True)
    bench.run()
    (output,) = bench.outputs[group]
    assert (output.finish_reason, output.error) == ("length", None)
    reading = reader.reading()
    assert reading.errors.keys() == {1}
    assert "not finite" in reading.errors[1]
    expected = naive_logits(bench, members[0], len(text)).double().log_softmax(-1)
    own = expected.gather(1, torch.tensor(text)[:, None])[:, 0]
    torch.testing.assert_close(
        torch.from_numpy(reading.log_probs[0]), own, atol=1e-4, rtol=1e-4, check_dtype=False
    )


def test_an_ensemble_s_prompt_has_the_combined_log_probabilities(bench: Bench) -> None:
    """`prompt_logprobs` of several rows are those of what the rule makes of them; then the group
    goes on generating.
    """
    text = random_prompt(17)
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    members = (Member(text, bench.empty), Member((*random_prompt(5, 1), *text), blend))
    rule = compile_rule("log_pool", {"a": 1.0, "b": 3.0})
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=0)
    group = bench.engine.add(Request(members, params, rule=rule))
    bench.run()
    expected = rule(torch.stack([naive_logits(bench, member, 16) for member in members]))
    targets = torch.tensor(text[1:])[:, None]
    expected = expected.log_softmax(-1).gather(1, targets)[:, 0]
    prompt = bench.outputs[group][0].prompt
    assert prompt is not None
    assert [token.token_id for token in prompt] == list(text)
    actual = torch.tensor([token.logprob for token in prompt[1:]])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert len(group.output_tokens) == 3


def test_a_greedy_text_is_known_as_such(bench: Bench) -> None:
    """`is_greedy` holds for what greedy decoding wrote, and for nothing that differs in a token."""
    prompt = random_prompt(10)
    written = naive_greedy(bench.merged(bench.empty), prompt, 8)
    other = [*written[:-1], (written[-1] + 1) % 200 + 3]
    verdicts = []
    for text in (written, other):
        reader = LogprobsReader(text, 2, None)
        read(bench, [Member((*prompt, *text), bench.empty)], len(text), reader)
        bench.run()
        verdicts.append(reader.is_greedy)
        expected = naive_logprobs(bench.merged(bench.empty), (*prompt, *text))[-8:]
        actual = torch.tensor([token.logprob for token in reader.tokens])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
        assert all(len(token.top) == 2 for token in reader.tokens)
    assert verdicts == [True, False]


def test_members_must_read_one_text() -> None:
    """Prompts that do not end alike cannot be read together."""
    blend = Blend("base", (), torch.zeros(0, 0))
    with pytest.raises(AssertionError, match="one text"):
        Request(
            (Member((1, 2, 3), blend), Member((1, 2, 4), blend)), SCORED, reader=Notes(), num_read=2
        )
    with pytest.raises(AssertionError, match="at least one token"):
        Request((Member((1, 2, 3), blend),), SCORED, reader=Notes(), num_read=3)


def test_texts_in_the_background_of_live_traffic_are_read_right(tmp_path: Path) -> None:
    """With live requests that come and go, and a KV cache in which background groups must give way,
    every live text is naive greedy's and every background text is read once and right.
    """
    bench = make_bench(tmp_path, kv_memory=0.00006, max_rows=6)
    object.__setattr__(bench.engine.config, "max_background_tokens", 3)
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    read_by: list[tuple[list[Member], Notes, Group]] = []
    for seed in range(6):
        text = random_prompt(20 + seed, seed=50 + seed)
        members = [Member(text, bench.empty), Member((*random_prompt(9, seed), *text), blend)]
        notes = Notes()
        group = read(bench, members, len(text) - 1, notes, priority="background")
        read_by.append((members, notes, group))
    dice = random.Random(0)
    live: list[tuple[tuple[int, ...], Group]] = []
    for number in range(25):
        prompt = random_prompt(dice.randint(1, 30), seed=number)
        live.append((prompt, bench.add(prompt)))
        for _ in range(dice.randint(0, 8)):
            bench.step()
        bench.check_integrity()
    bench.run()
    bench.check_integrity()
    assert any(group.num_preemptions for _, _, group in read_by)
    model = bench.merged(bench.empty)
    for prompt, group in live:
        assert naive_greedy(model, prompt, 12) == group.output_tokens
    for members, notes, group in read_by:
        num_read = group.request.text_len
        assert_read_once(notes, num_read)
        for row, member in enumerate(members):
            expected = naive_logits(bench, member, num_read)
            torch.testing.assert_close(notes.logits[row], expected, atol=1e-4, rtol=1e-4)
