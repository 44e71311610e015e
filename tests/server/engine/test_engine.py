"""The engine does what naive decoding does, whatever else is in the batch."""

import random
from pathlib import Path

import pytest
import torch

from server.engine.request import Member, Request, SamplingParams
from tests.adapters import blend_of
from tests.models import FAMILIES
from tests.server.engine.conftest import (
    Bench,
    make_bench,
    naive_greedy,
    naive_logprobs,
    random_prompt,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_naive_greedy(family: str, tmp_path: Path) -> None:
    """Mixed prompt lengths, chunked prefill and paged decoding give naive greedy decoding's tokens,
    for every family.
    """
    bench = make_bench(tmp_path, family)
    prompts = [random_prompt(3 + 9 * i, seed=i) for i in range(5)]
    groups = [bench.add(prompt) for prompt in prompts]
    bench.run()
    model = bench.merged(bench.empty)
    for prompt, group in zip(prompts, groups, strict=True):
        assert naive_greedy(model, prompt, 12) == group.output_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_blends_in_one_batch_equal_dense_merges(family: str, tmp_path: Path) -> None:
    """Rows of four different blends of unequal adapters, in one batch, give the log-probabilities
    of four merged models.
    """
    bench = make_bench(tmp_path, family)
    first = bench.adapter(1, r=2, lora_alpha=7)
    second = bench.adapter(2, r=5, lora_alpha=3, use_rslora=True)
    modules = torch.linspace(-0.5, 1.5, len(bench.base.linears))
    blends = [
        blend_of(bench.base, {first: 1.0}),
        blend_of(bench.base, {first: 0.6, second: -0.4}),
        blend_of(bench.base, {second: modules}),
        bench.empty,
    ]
    prompts = [random_prompt(21, seed=i) for i in range(len(blends))]
    groups = [
        bench.add(prompt, blend, prompt_logprobs=0)
        for prompt, blend in zip(prompts, blends, strict=True)
    ]
    bench.run()
    for prompt, blend, group in zip(prompts, blends, groups, strict=True):
        model = bench.merged(blend)
        expected = naive_logprobs(model, prompt)
        actual = torch.tensor([token.logprob for token in group.prompt_logprobs[1:]])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
        assert naive_greedy(model, prompt, 12) == group.output_tokens


def test_random_arrivals_aborts_and_preemption(tmp_path: Path) -> None:
    """With random arrivals and aborts and a KV cache that holds a few rows only, every finished
    text is naive greedy's.
    """
    bench = make_bench(tmp_path, kv_memory=0.00004, max_rows=6)
    assert bench.engine.config.num_blocks < 50
    blends = [bench.empty, blend_of(bench.base, {bench.adapter(1): 0.7})]
    dice = random.Random(0)
    groups = []
    for number in range(40):
        prompt = random_prompt(dice.randint(1, 40), seed=number % 7)
        groups.append((prompt, number % 2, bench.add(prompt, blends[number % 2], max_tokens=24)))
        for _ in range(dice.randint(0, 6)):
            bench.step()
        if dice.random() < 0.2:
            bench.engine.abort(dice.choice(groups)[2])
        bench.check_integrity()
    bench.run()
    bench.check_integrity()
    models = [bench.merged(blend) for blend in blends]
    assert any(group.num_preemptions for _, _, group in groups)
    assert any(group.aborted for _, _, group in groups)
    for prompt, index, group in groups:
        if not group.aborted:
            assert naive_greedy(models[index], prompt, 24) == group.output_tokens


def test_seeded_text_does_not_depend_on_the_batch(bench: Bench) -> None:
    """A seed gives the same tokens alone and among other rows, other choices give others."""
    prompt = random_prompt(9)
    options = {"temperature": 1.0, "seed": 7, "max_tokens": 30}
    alone = bench.add(prompt, **options)
    bench.run()
    crowd = [bench.add(random_prompt(5 + i, seed=i), temperature=1.0) for i in range(5)]
    again = bench.add(prompt, **options)
    other = bench.add(prompt, choice=1, **options)
    bench.run()
    assert alone.output_tokens == again.output_tokens
    assert alone.output_tokens != other.output_tokens
    assert len(crowd) == 5


def test_seeded_text_survives_preemption(tmp_path: Path) -> None:
    """A row that was preempted and computed again draws the same tokens."""
    roomy = make_bench(tmp_path)
    tight = make_bench(tmp_path, kv_memory=0.00003)
    texts = []
    for bench in (roomy, tight):
        groups = [
            bench.add(random_prompt(8, seed=i), temperature=1.0, seed=i, max_tokens=60)
            for i in range(4)
        ]
        bench.run()
        texts.append([group.output_tokens for group in groups])
    assert sum(group.num_preemptions for group in groups) > 0
    assert texts[0] == texts[1]


def test_prefix_is_reused_only_under_the_same_weights(bench: Bench) -> None:
    """A prompt read once is cached for its digest, and read anew under another blend."""
    prompt = random_prompt(33)
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    first = bench.add(prompt, blend)
    bench.run()
    second, third = bench.add(prompt, blend), bench.add(prompt)
    bench.run()
    assert tuple(group.num_cached_tokens for group in (first, second, third)) == (0, 32, 0)
    assert first.output_tokens == second.output_tokens
    assert naive_greedy(bench.merged(bench.empty), prompt, 12) == third.output_tokens


def test_choices_that_arrive_together_share_their_prompt(bench: Bench) -> None:
    """Of the n choices of one prompt, only the first computes it."""
    prompt = random_prompt(41)
    groups = [bench.add(prompt, choice=i) for i in range(4)]
    bench.run()
    assert [group.num_cached_tokens for group in groups] == [0, 40, 40, 40]
    assert all(group.output_tokens == groups[0].output_tokens for group in groups)


def test_rows_of_a_group_share_every_token(bench: Bench) -> None:
    """A group of rows with different blends and prompts samples from what its rule makes of their
    logits.
    """
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    members = (Member(random_prompt(9), bench.empty), Member(random_prompt(23, 1), blend))
    params = SamplingParams(temperature=0, max_tokens=8)
    group = bench.engine.add(Request(members, params, rule=lambda logits: logits.mean(dim=0)))
    bench.run()
    models = [bench.merged(member.weights) for member in members]
    sequences = [list(member.prompt) for member in members]
    expected = []
    for _ in range(8):
        with torch.inference_mode():
            rows = [
                model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1]
                for model, ids in zip(models, sequences, strict=True)
            ]
        token = int(torch.stack(rows).mean(dim=0).argmax())
        expected.append(token)
        for ids in sequences:
            ids.append(token)
    assert expected == group.output_tokens


def test_logits_that_are_not_finite_fail_their_request_alone(bench: Bench) -> None:
    """A blend that overflows ends with an error; its neighbours, and later users of its blocks, are
    untouched.
    """
    broken = blend_of(bench.base, {bench.adapter(1): 1e30})
    prompts = [random_prompt(11, seed=i) for i in range(3)]
    good = bench.add(prompts[0])
    bad = bench.add(prompts[1], broken)
    bench.run()
    later = [bench.add(random_prompt(50, seed=i), max_tokens=40) for i in range(8)]
    bench.run()
    assert bad.finish_reason == "error"
    model = bench.merged(bench.empty)
    assert naive_greedy(model, prompts[0], 12) == good.output_tokens
    for seed, group in enumerate(later):
        assert naive_greedy(model, random_prompt(50, seed=seed), 40) == group.output_tokens


def test_prompt_logprobs_without_tokens(bench: Bench) -> None:
    """`max_tokens` 0 reads the prompt, reports its log-probabilities and samples nothing."""
    prompt = random_prompt(30)
    group = bench.add(prompt, max_tokens=0, prompt_logprobs=2)
    bench.run()
    (output,) = bench.outputs[group]
    assert (output.finish_reason, output.tokens, output.prompt[0].logprob) == ("length", (), None)
    expected = naive_logprobs(bench.merged(bench.empty), prompt)
    actual = torch.tensor([token.logprob for token in output.prompt[1:]])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert all(len(token.top) == 2 for token in output.prompt[1:])


def test_prompt_logprobs_survive_preemption(tmp_path: Path) -> None:
    """A long prompt whose log-probabilities were half reported when it was preempted gets each of
    them once.
    """
    bench = make_bench(tmp_path, kv_memory=0.00004)
    old = bench.add(random_prompt(20), max_tokens=100)
    prompt = random_prompt(60, seed=1)
    scored = bench.add(prompt, max_tokens=30, prompt_logprobs=0)
    bench.run()
    assert scored.num_preemptions + old.num_preemptions > 0
    expected = naive_logprobs(bench.merged(bench.empty), prompt)
    actual = torch.tensor([token.logprob for token in scored.prompt_logprobs[1:]])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_stop_strings_cut_the_text(bench: Bench) -> None:
    """Text ends before the stop string, although the string came in several tokens."""
    prompt = random_prompt(10)
    free = bench.add(prompt, max_tokens=40)
    bench.run()
    text = bench.text(free)
    stop = text[12:15]
    stopped = bench.add(prompt, max_tokens=40, stop=(stop,))
    bench.run()
    assert text[: text.index(stop)] == bench.text(stopped)
    assert ("stop", stop) == (stopped.finish_reason, stopped.stop_reason)


def test_stop_tokens_and_min_tokens(bench: Bench) -> None:
    """A stop token ends the text, but not before `min_tokens`."""
    prompt = random_prompt(10)
    free = bench.add(prompt, max_tokens=20)
    bench.run()
    token = free.output_tokens[4]
    early = bench.add(prompt, max_tokens=20, stop_token_ids=(token,))
    late = bench.add(prompt, max_tokens=20, stop_token_ids=(token,), min_tokens=15)
    bench.run()
    assert free.output_tokens[: free.output_tokens.index(token) + 1] == early.output_tokens
    assert len(late.output_tokens) >= 15
    assert token not in late.output_tokens[:14]


def test_the_context_length_ends_a_text(tmp_path: Path) -> None:
    """A row never grows past `max_model_len`."""
    bench = make_bench(tmp_path, max_model_len=32)
    group = bench.add(random_prompt(25), max_tokens=100)
    bench.run()
    assert (len(group.output_tokens), group.finish_reason) == (7, "length")


def test_active_rank_is_bounded(tmp_path: Path) -> None:
    """Groups whose adapters would pass the rank limit wait for their turn."""
    bench = make_bench(tmp_path)
    object.__setattr__(bench.engine.scheduler.config, "max_active_rank", 8)
    blends = [blend_of(bench.base, {bench.adapter(seed): 1.0}) for seed in range(4)]
    groups = [bench.add(random_prompt(6), blend) for blend in blends]
    bench.step()
    assert len(bench.engine.scheduler.running) == 2
    bench.run()
    for blend, group in zip(blends, groups, strict=True):
        assert naive_greedy(bench.merged(blend), random_prompt(6), 12) == group.output_tokens


def test_adapters_come_and_go(bench: Bench) -> None:
    """Adapters that fall out of use are dropped from the slab, and come back right."""
    adapters = [bench.adapter(seed) for seed in range(6)]
    for adapter in [*adapters, *adapters[:2]]:
        blend = blend_of(bench.base, {adapter: 1.0})
        group = bench.add(random_prompt(6), blend, max_tokens=70)
        bench.run()
        assert naive_greedy(bench.merged(blend), random_prompt(6), 70) == group.output_tokens
    assert bench.engine._runner.active_rank <= 12
