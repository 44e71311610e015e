"""What goes wrong in one request stays in that request."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from merging.adapter import Adapter, LowRank
from server.engine import engine as engine_module
from server.engine.errors import UnsupportedModelError
from server.engine.group import FAILED, OVERFLOW, Group
from server.engine.loading import build_engine
from server.engine.options import EngineOptions
from server.engine.slab import Slab
from server.engine.stats import RequestStats, StepStats
from server.engine.tokenizer import Tokenizer
from tests.adapters import blend_of
from tests.models import VOCAB_SIZE
from tests.server.engine.conftest import (
    Bench,
    make_bench,
    naive_greedy,
    naive_logprobs,
    random_prompt,
)
from tests.tokenizers import byte_tokenizer

NOT_FINITE = f"the model {OVERFLOW}"
POISON = 7
"""A token whose embedding is infinite in the `poisoned` bench: whoever reads it gets NaN."""


@pytest.fixture
def poisoned(tmp_path: Path) -> Iterator[Bench]:
    """A bench with a poisonous token and few blocks, so that they are reused soon."""
    bench = make_bench(tmp_path, "llama-untied", kv_memory=0.00006)
    with torch.no_grad():
        bench.engine._runner._model.model.get_input_embeddings().weight[POISON] = float("inf")
    yield bench
    bench.check_integrity()


def clean_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """A random prompt without the poisonous token."""
    return tuple(token if token != POISON else POISON + 1 for token in random_prompt(length, seed))


def assert_base_is_right(bench: Bench) -> None:
    """Enough requests to use every block again, each compared with naive greedy decoding."""
    model = bench.merged(bench.empty)
    prompts = [clean_prompt(40, seed=100 + i) for i in range(8)]
    groups = [bench.add(prompt) for prompt in prompts]
    bench.run()
    for prompt, group in zip(prompts, groups, strict=True):
        assert naive_greedy(model, prompt, 12) == group.output_tokens


def test_a_shared_prefix_survives_a_neighbour_s_nan(poisoned: Bench) -> None:
    """A request that fails beside one that shares its prefix changes neither it nor later ones."""
    prompt = clean_prompt(24)
    healthy = poisoned.add(prompt, max_tokens=30)
    for _ in range(6):
        poisoned.step()
    broken = poisoned.add((*prompt, POISON))
    poisoned.run()
    again = poisoned.add(prompt, max_tokens=30)
    poisoned.run()
    assert broken.finish_reason == "error"
    expected = naive_greedy(poisoned.merged(poisoned.empty), prompt, 30)
    assert expected == healthy.output_tokens == again.output_tokens


def test_a_request_that_failed_fails_again(poisoned: Bench) -> None:
    """A retry must not get text from what the first try left in the cache."""
    prompt = (*clean_prompt(20), POISON, *clean_prompt(12, seed=1))
    reasons = []
    for _ in range(3):
        group = poisoned.add(prompt)
        poisoned.run()
        reasons.append((group.finish_reason, poisoned.outputs[group][-1].error))
    assert reasons == [("error", NOT_FINITE)] * 3


@pytest.mark.parametrize("how", ["score", "abort", "fail"])
def test_nan_in_freed_blocks_reaches_nobody(poisoned: Bench, how: str) -> None:
    """Whichever way a row with NaN ends, those who get its blocks next are right."""
    for seed in range(4):
        prompt = (*clean_prompt(10, seed), POISON, *clean_prompt(40, seed + 50))
        options = {"max_tokens": 0, "prompt_logprobs": 0} if how == "score" else {}
        group = poisoned.add(prompt, **options)
        if how == "abort":
            poisoned.step()
            poisoned.step()
            poisoned.engine.abort(group)
        poisoned.run()
    assert_base_is_right(poisoned)


def test_scoring_under_weights_that_overflow_is_an_error(bench: Bench) -> None:
    """Prompt log-probabilities that are not numbers are never reported."""
    broken = blend_of(bench.base, {bench.adapter(1): 1e30})
    group = bench.add(random_prompt(9), broken, max_tokens=0, prompt_logprobs=0)
    bench.run()
    (output,) = bench.outputs[group]
    assert (output.finish_reason, output.error, output.prompt) == ("error", NOT_FINITE, None)


def test_an_adapter_that_overflows_leaves_its_neighbours_alone(bench: Bench) -> None:
    """Zero times infinity is NaN: a row without the adapter must not be multiplied by it at all."""
    huge = {
        name: LowRank(torch.full((1, s.in_features), 1e38), torch.ones(s.out_features, 1), 1.0)
        for name, s in bench.base.linears.items()
    }
    adapter = Adapter("huge", huge, None, None, Path(), 0)
    other = blend_of(bench.base, {bench.adapter(1): 1.0})
    prompt = random_prompt(9)
    broken = bench.add(prompt, blend_of(bench.base, {adapter: 1.0}))
    beside = [bench.add(prompt), bench.add(prompt, other)]
    bench.run()
    assert broken.finish_reason == "error"
    for blend, group in zip((bench.empty, other), beside, strict=True):
        assert naive_greedy(bench.merged(blend), prompt, 12) == group.output_tokens


def test_half_an_adapter_is_not_taken_for_a_whole_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure while an adapter was stacked, the next request stacks it again."""
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(Slab, "_empty", lambda self, *size: 1 / 0)
        failed = bench.add(random_prompt(9), blend)
        bench.run()
    again = bench.add(random_prompt(9), blend)
    bench.run()
    assert failed.finish_reason == "error"
    assert naive_greedy(bench.merged(blend), random_prompt(9), 12) == again.output_tokens


def test_a_failure_after_the_forward_fails_that_step_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception while tokens are drawn ends the step's requests; those that wait go on."""
    running = [bench.add(random_prompt(5, seed=i)) for i in range(8)]
    waiting = bench.add(random_prompt(6))
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "sample", lambda *arguments: 1 / 0)
        while all(group.finish_reason is None for group in running):
            bench.step()
    bench.run()
    assert FAILED in {bench.outputs[group][-1].error for group in running}
    assert naive_greedy(bench.merged(bench.empty), random_prompt(6), 12) == waiting.output_tokens
    assert "ZeroDivisionError" in caplog.text


def test_short_requests_over_many_adapters_keep_the_slab_small(tmp_path: Path) -> None:
    """The slab never stacks more ranks than the limit, however many adapters take turns."""
    bench = make_bench(tmp_path)
    bench.engine._runner._slab._max_rank = 12
    for seed in [*range(6), *range(6)]:
        blend = blend_of(bench.base, {bench.adapter(seed): 1.0})
        group = bench.add(random_prompt(6), blend, max_tokens=3)
        bench.run()
        assert bench.engine._runner.active_rank <= 12
        assert naive_greedy(bench.merged(blend), random_prompt(6), 3) == group.output_tokens


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning")
def test_rows_in_different_stages_share_an_adapted_head(tmp_path: Path) -> None:
    """Adapters on the head see the right row whether a row decodes, reads, or is scored."""
    bench = make_bench(tmp_path, "llama-untied")
    blends = [
        blend_of(bench.base, {bench.adapter(i, target_modules=["lm_head", "q_proj"]): 1.0})
        for i in range(3)
    ]
    prompts = [random_prompt(4 + 15 * i, seed=i) for i in range(3)]
    groups = [
        bench.add(prompt, blend, prompt_logprobs=0 if i == 2 else None)
        for i, (prompt, blend) in enumerate(zip(prompts, blends, strict=True))
    ]
    bench.run()
    for prompt, blend, group in zip(prompts, blends, groups, strict=True):
        assert naive_greedy(bench.merged(blend), prompt, 12) == group.output_tokens
    expected = naive_logprobs(bench.merged(blends[2]), prompts[2])
    actual = torch.tensor([token.logprob for token in groups[2].prompt_logprobs[1:]])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_model_s_stop_token_ends_a_text(tmp_path: Path, ignore_eos: bool) -> None:
    """An end-of-sequence token ends the text with reason stop, unless it is ignored."""
    free = make_bench(tmp_path)
    group = free.add(random_prompt(10), max_tokens=20)
    free.run()
    eos = group.output_tokens[4]
    bench = make_bench(tmp_path, eos=frozenset({eos}))
    stopped = bench.add(random_prompt(10), max_tokens=20, ignore_eos=ignore_eos)
    bench.run()
    end = group.output_tokens.index(eos) + 1
    expected = (20, "length") if ignore_eos else (end, "stop")
    assert (len(stopped.output_tokens), stopped.finish_reason) == expected


def test_scored_prompts_share_the_limit_of_a_step(tmp_path: Path) -> None:
    """All prompts scored in one step together have at most `max_prompt_logits` positions."""
    bench = make_bench(tmp_path, max_step_tokens=64)
    object.__setattr__(bench.engine.scheduler.config, "max_prompt_logits", 10)
    for seed in range(3):
        bench.add(random_prompt(30, seed), max_tokens=1, prompt_logprobs=0)
    while bench.engine.scheduler.has_work:
        plan = bench.engine.scheduler.schedule()
        assert sum(item.num_logits for item in plan.work if item.group.is_reading) <= 10
        logits = bench.engine._runner.forward(plan.work)
        bench.engine.scheduler.computed(plan)
        for group in list(bench.engine.scheduler.running):
            group.take({row: logits[row] for row in group.rows if row in logits})
            if group.is_ready:
                bench.engine.scheduler.finish(group)


def engine_of(**options: object):  # type: ignore[no-untyped-def]
    """An engine over a tiny random model of the given config."""
    config = AutoConfig.for_model(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    tokenizer = Tokenizer(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=frozenset())
    options = EngineOptions(kv_memory=0.01, max_rows=512)
    return build_engine(model, tokenizer, options)[0]


def test_longrope_is_served_up_to_its_original_length() -> None:
    """Its factors change with the longest row of a batch, so longer rows are not taken."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    engine = engine_of(
        model_type="phi3",
        original_max_position_embeddings=32,
        rope_parameters={**rope, "original_max_position_embeddings": 32},
    )
    assert engine.config.max_model_len == 32


def test_a_window_that_only_masks_know_is_the_familys_own() -> None:
    """A model whose layers do not tell attention of their window runs its own attention, at any
    length; one whose window no row outgrows runs ours.
    """
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    engine = engine_of(model_type="phimoe", sliding_window=24, **experts)
    assert not engine._runner.is_packed
    assert engine.config.max_model_len == 256
    assert engine_of(model_type="phimoe", sliding_window=256, **experts)._runner.is_packed


def test_a_window_that_nobody_reads_changes_nothing() -> None:
    """A Llama whose config names a window runs our attention, at any length."""
    engine = engine_of(model_type="llama", sliding_window=24)
    assert engine._runner.is_packed
    assert engine.config.max_model_len == 256


def test_a_step_has_room_for_every_row() -> None:
    """With many rows a step takes more tokens, so that prompts are read beside full decoding."""
    assert engine_of(model_type="llama").config.max_step_tokens >= 512 + 128


def test_a_model_of_another_kind_is_refused_by_name() -> None:
    """A model without plain attention is refused when it is loaded, not served wrongly."""
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    tokenizer = Tokenizer(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=frozenset())
    with pytest.raises(UnsupportedModelError, match="Mamba"):
        build_engine(model, tokenizer, EngineOptions(kv_memory=0.01))


class Failing:
    """An observer that fails whatever it is told."""

    def step(self, stats: StepStats) -> None:
        raise ValueError("step")

    def finished(self, stats: RequestStats) -> None:
        raise ValueError("finished")


def test_an_observer_that_fails_costs_no_answer(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong while a request is measured is logged, and the request is answered."""
    bench.engine.observer = Failing()
    group = bench.add(random_prompt(6), max_tokens=3)
    bench.run()
    assert bench.outputs[group][-1].finish_reason == "length"
    assert "ValueError: finished" in caplog.text
    assert "ValueError: step" in caplog.text


def test_whoever_left_in_a_step_that_failed_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure after one group of a step has ended ends that group's stream too."""
    groups = [bench.add(random_prompt(5, seed=i), max_tokens=1) for i in range(2)]
    finish, finished = bench.engine.scheduler.finish, []

    def fail_once(group: Group) -> None:
        finished.append(group)
        if len(finished) == 2:
            raise ValueError("after the first has left")
        finish(group)

    monkeypatch.setattr(bench.engine.scheduler, "finish", fail_once)
    bench.run()
    assert [bench.outputs[group][-1].error for group in groups] == [FAILED] * 2
