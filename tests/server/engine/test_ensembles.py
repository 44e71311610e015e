"""Groups of several rows: scheduled, preempted and sampled as one."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from ensemble.errors import CombinedLogitsError
from ensemble.rule import compile_rule
from merging.blend import Blend
from server.engine.group import Group
from server.engine.request import Member, Request, SamplingParams
from server.engine.stats import RequestStats, StepStats
from server.engine.variant import Variant
from tests.adapters import blend_of
from tests.ensembles import greedy, model_logits
from tests.server.engine.conftest import Bench, make_bench, random_prompt
from tests.server.engine.variants import make_variant, own_layers, random_changes

Weights = Blend | Variant
COEFFICIENTS = {"one": 0.7, "two": -0.4, "three": 0.5}


def add(
    bench: Bench,
    rule: str,
    weights: dict[str, Weights],
    prompts: dict[str, tuple[int, ...]] | tuple[int, ...],
    coefficients: dict[str, float] = COEFFICIENTS,
    choice: int = 0,
    **sampling: object,
) -> Group:
    """Queue an ensemble, greedy unless said otherwise. `prompts`: of each member, or of all."""
    compiled = compile_rule(rule, {n: coefficients[n] for n in weights if n != "base"}).pruned()
    own = prompts if isinstance(prompts, dict) else dict.fromkeys(weights, prompts)
    members = tuple(Member(own[name], weights[name], name) for name in compiled.rows)
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 10, **sampling})  # type: ignore[arg-type]
    group = bench.engine.add(Request(members, params, choice, rule=compiled))
    bench.outputs[group] = []
    return group


def members_of(bench: Bench) -> dict[str, Blend]:
    """The base and three blends."""
    first, second = bench.adapter(1, r=2), bench.adapter(2, r=5)
    return {
        "base": bench.empty,
        "one": blend_of(bench.base, {first: 1.0}),
        "two": blend_of(bench.base, {second: 1.0}),
        "three": blend_of(bench.base, {first: 0.5, second: 0.5}),
    }


def expected(
    bench: Bench,
    rule: str,
    weights: dict[str, Blend],
    prompts: dict[str, tuple[int, ...]],
    num_tokens: int,
) -> tuple[list[int], float]:
    """The same by one model after the other, and the smallest lead of a token."""
    models = {name: model_logits(bench.merged(blend).cpu()) for name, blend in weights.items()}
    coefficients = {name: COEFFICIENTS[name] for name in weights if name != "base"}
    tokens, _, lead = greedy(rule, models, coefficients, (), num_tokens, prompts)
    return tokens, lead


def test_random_arrivals_aborts_and_preemption(tmp_path: Path) -> None:
    """Ensembles of one to four rows, with prompts of each row's own, and plain requests arrive and
    are aborted at random in a KV cache that holds few rows: every finished text is that of the
    models run one after the other.
    """
    bench = make_bench(tmp_path, kv_memory=0.000045, max_rows=8)
    assert bench.engine.config.num_blocks < 40
    weights = members_of(bench)
    dice = random.Random(3)
    asked: list[tuple[str, list[str], dict[str, tuple[int, ...]], Group]] = []
    for number in range(24):
        rule = ("task_arithmetic", "log_pool")[number % 2]
        names = ["one", *dice.sample(["two", "three"], dice.randint(0, 2))]
        names += ["base"] * (rule == "task_arithmetic")
        shared = random_prompt(dice.randint(1, 10), seed=number % 5)
        prompts = dict.fromkeys(names, shared)
        if number % 3 == 0:
            prompts[names[-1]] = random_prompt(dice.randint(1, 12), seed=number)
        own = {name: weights[name] for name in names}
        asked.append((rule, names, prompts, add(bench, rule, own, prompts)))
        for _ in range(dice.randint(0, 5)):
            bench.step()
        if dice.random() < 0.2:
            bench.engine.abort(dice.choice(asked)[3])
        bench.check_integrity()
    bench.run()
    bench.check_integrity()
    groups = [group for *_, group in asked]
    assert any(group.num_preemptions and len(group.rows) > 1 for group in groups)
    assert any(group.aborted for group in groups)
    num_checked = 0
    for rule, names, prompts, group in asked:
        if group.aborted:
            continue
        own = {name: weights[name] for name in names}
        tokens, lead = expected(bench, rule, own, prompts, 10)
        if lead > 1e-4:
            num_checked += 1
            assert group.output_tokens == tokens, (rule, names)
    assert num_checked > 12


def test_seeded_text_survives_preemption(tmp_path: Path) -> None:
    """A group that was preempted as a whole draws the same tokens again."""
    texts, preempted = [], 0
    for kv_memory in (0.002, 0.00005):
        bench = make_bench(tmp_path, kv_memory=kv_memory)
        weights: dict[str, Weights] = dict(members_of(bench))
        groups = [
            add(bench, "task_arithmetic", weights, random_prompt(8, seed=i), temperature=1.0,
                seed=i, max_tokens=12)
            for i in range(4)
        ]  # fmt: skip
        bench.run()
        texts.append([group.output_tokens for group in groups])
        preempted += sum(group.num_preemptions for group in groups)
    assert preempted > 0
    assert texts[0] == texts[1]


def test_blends_and_variants_in_one_group(tmp_path: Path) -> None:
    """Rows of the base's forward and rows of a variant's are one group."""
    bench = make_bench(tmp_path)
    weights: dict[str, Weights] = {"one": members_of(bench)["one"]}
    layers = own_layers(bench)
    changes = random_changes(bench, ["model.layers.1.mlp.up_proj.weight"], layers, seed=5)
    weights["two"] = make_variant(bench, changes)
    alone = [bench.add(random_prompt(9), own, max_tokens=10) for own in weights.values()]
    pair = [
        add(bench, "linear_pool", weights, random_prompt(9), {"one": float(i), "two": float(1 - i)})
        for i in (1, 0)
    ]
    both = add(bench, "log_pool", weights, random_prompt(9), {"one": 0.5, "two": 0.5})
    bench.run()
    assert [group.output_tokens for group in alone] == [group.output_tokens for group in pair]
    assert len(both.rows) == 2
    assert both.finish_reason == "length"


def test_penalties_and_bias_act_once(bench: Bench) -> None:
    """They act on the combined distribution: an ensemble of equal members does what one does."""
    one = members_of(bench)["one"]
    options: dict[str, object] = {
        "temperature": 0.8, "seed": 4, "max_tokens": 20, "top_p": 0.9, "top_k": 40, "min_p": 0.01,
        "presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2,
        "logit_bias": {7: 3.0, 11: -5.0},
    }  # fmt: skip
    alone = bench.add(random_prompt(9), one, **options)
    weights: dict[str, Weights] = {"one": one, "two": one}
    together = add(bench, "log_pool", weights, random_prompt(9), {"one": 1, "two": 3}, **options)
    bench.run()
    assert alone.output_tokens == together.output_tokens


def test_rows_find_each_others_prefixes(bench: Bench) -> None:
    """A row shares the cached prefix of whatever ran the same weights before: a source alone, and
    another ensemble.
    """
    weights: dict[str, Weights] = dict(members_of(bench))
    prompt = random_prompt(17)
    bench.add(prompt, weights["one"])
    bench.run()
    hits = [add(bench, "log_pool", {n: weights[n] for n in names}, prompt) for names in
            (["one"], ["one", "three"], ["one", "three"])]  # fmt: skip
    bench.run()
    assert [group.num_cached_tokens for group in hits] == [16, 16, 16]


class Observer:
    """Keeps what is told of requests."""

    def __init__(self) -> None:
        self.stats: list[RequestStats] = []

    def step(self, stats: StepStats) -> None:
        """Not of interest."""

    def finished(self, stats: RequestStats) -> None:
        self.stats.append(stats)


def test_disagreement_is_measured_now_and_then(bench: Bench) -> None:
    """Equal members agree, others do not; a request of one row is not measured."""
    bench.engine.observer = observer = Observer()
    weights: dict[str, Weights] = dict(members_of(bench))
    same: dict[str, Weights] = {"one": weights["one"], "two": weights["one"]}
    bench.add(random_prompt(5), weights["one"], max_tokens=40)
    add(bench, "log_pool", same, random_prompt(5), {"one": 1, "two": 1}, max_tokens=40)
    add(bench, "task_arithmetic", weights, random_prompt(5), max_tokens=40)
    bench.run()
    one, equal, other = sorted(observer.stats, key=lambda s: sum(
        d.divergence for d in s.disagreements))  # fmt: skip
    assert one.disagreements == ()
    assert [len(s.disagreements) for s in (equal, other)] == [3, 3]
    assert all(d.divergence < 1e-5 and d.agreement == 1 for d in equal.disagreements)
    assert all(d.divergence > 1e-3 and 0 <= d.agreement <= 1 for d in other.disagreements)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_member_with_bad_logits_is_named(bench: Bench, bad: float) -> None:
    """The request fails with the member's name, the others go on, and nothing stays held."""
    weights: dict[str, Weights] = dict(members_of(bench))
    adapter = bench.adapter(8)
    broken = blend_of(bench.base, {adapter: 1.0})
    weights["two"] = Blend("broken", broken.adapters, torch.full_like(broken.coefficients, bad))
    failed = add(bench, "task_arithmetic", weights, random_prompt(6))
    sound = bench.add(random_prompt(6), weights["one"])
    bench.run()
    (output,) = bench.outputs[failed]
    assert output.finish_reason == "error"
    assert "member 'two' gave logits that are not finite" in (output.error or "")
    assert sound.finish_reason == "length"


def test_a_combination_that_is_none(bench: Bench) -> None:
    """A rule that makes nothing of finite members fails its request, and no other."""

    def nothing(logits: torch.Tensor) -> torch.Tensor:
        raise CombinedLogitsError("every token is ruled out")

    weights = members_of(bench)
    members = tuple(Member(random_prompt(6), weights[name], name) for name in ("one", "two"))
    failed = bench.engine.add(Request(members, SamplingParams(), rule=nothing))
    bench.outputs[failed] = []
    sound = bench.add(random_prompt(6), weights["one"])
    bench.run()
    (output,) = bench.outputs[failed]
    assert (output.finish_reason, output.error) == ("error", "every token is ruled out")
    assert sound.finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_that_must_go_on_where_only_its_end_is_plausible(
    tmp_path: Path, temperature: float
) -> None:
    """With `min_tokens`, where the stop token is all that the plausibility constraint leaves, the
    token is drawn from the combination without the constraint, and not from what was ruled out.
    """
    bench = make_bench(tmp_path)
    weights = members_of(bench)
    strict = compile_rule("log_pool", {"one": 0.5, "two": 0.5}, plausibility_alpha=1.0)
    lenient = dataclasses.replace(strict, plausibility_alpha=0.0)
    members = tuple(Member(random_prompt(6), weights[name], name) for name in strict.rows)

    def ask(**sampling: object) -> list[int]:
        params = SamplingParams(max_tokens=1, **sampling)  # type: ignore[arg-type]
        request = Request(members, params, rule=strict, lenient_rule=lenient)
        group = bench.engine.add(request)
        bench.run()
        return group.output_tokens

    (best,) = ask(temperature=0.0)
    models = [model_logits(bench.merged(weights[name]).cpu()) for name in strict.rows]
    left = lenient(torch.stack([torch.tensor(model(random_prompt(6))) for model in models]))
    left[best] = float("-inf")
    options = {"temperature": temperature, "top_k": 2, "min_tokens": 1, "stop_token_ids": (best,)}
    wanted = set(left.topk(2 if temperature else 1).indices.tolist())
    assert {ask(seed=seed, **options)[0] for seed in range(20)} == wanted
