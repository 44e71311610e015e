"""A compiled rule knows its rows, names what is broken, and refuses what has no meaning."""

import math
from collections.abc import Mapping

import pytest
import torch

from ensemble.errors import CombinedLogitsError, MemberLogitsError, RuleError
from ensemble.rule import Rule, compile_rule
from ensemble.rules import linear_pool, log_pool, task_arithmetic

NAMES = ["task_arithmetic", "log_pool", "linear_pool"]


def random_logits(seed: int, num: int, vocab: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, vocab, generator=generator) * 3


def reasons(name: str, coefficients: Mapping[str, float], **options: object) -> tuple[str, ...]:
    with pytest.raises(RuleError) as error:
        compile_rule(name, coefficients, **options)  # type: ignore[arg-type]
    return error.value.reasons


def test_task_arithmetic_has_the_base_as_its_first_row() -> None:
    """Rows are the base and the members by name; the base counts for what the lambdas leave."""
    rule = compile_rule("task_arithmetic", {"math": 0.5, "code": 0.25})
    assert rule.rows == ("base", "code", "math")
    assert rule.coefficients == (0.25, 0.25, 0.5)


@pytest.mark.parametrize("name", ["log_pool", "linear_pool"])
def test_pools_have_no_base_and_normalise(name: str) -> None:
    """A pool's rows are its members, whose weights are divided by their sum."""
    rule = compile_rule(name, {"math": 3.0, "code": 1.0})
    assert rule.rows == ("code", "math")
    assert rule.coefficients == (0.25, 0.75)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_members_never_matters(name: str) -> None:
    """The same members in another order are the same rule."""
    one = compile_rule(name, {"a": 0.3, "b": 0.5, "c": 0.1})
    other = compile_rule(name, {"c": 0.1, "a": 0.3, "b": 0.5})
    assert one == other


def test_the_base_as_a_member_has_no_delta() -> None:
    """In task arithmetic a member that is the base adds nothing; in a pool it is a member."""
    rule = compile_rule("task_arithmetic", {"base": 0.7, "math": 0.4})
    assert rule == compile_rule("task_arithmetic", {"math": 0.4})
    assert compile_rule("log_pool", {"base": 1.0, "math": 1.0}).rows == ("base", "math")


def test_the_base_may_have_another_name() -> None:
    """Guidance has an unconditional prompt where a merge has its base."""
    rule = compile_rule("task_arithmetic", {"prompt": 1.5}, base="negative prompt")
    assert rule.rows == ("negative prompt", "prompt")
    assert rule.coefficients == (-0.5, 1.5)


def test_a_rule_computes_what_its_function_does() -> None:
    """Calling a rule is calling the function of its name with its coefficients."""
    logits = random_logits(0, 3)
    weights = {"a": 0.5, "b": 0.2, "c": 0.9}
    values = list(weights.values())
    assert torch.equal(compile_rule("log_pool", weights)(logits), log_pool(logits, values))
    assert torch.equal(compile_rule("linear_pool", weights)(logits), linear_pool(logits, values))
    rule = compile_rule("task_arithmetic", {"a": 0.5, "b": 0.2})
    assert torch.equal(rule(logits), task_arithmetic(logits, [0.5, 0.2]))


def test_needed_rows_are_those_that_count() -> None:
    """Members of weight zero need no row, nor does a base whose coefficient is zero."""
    assert compile_rule("task_arithmetic", {"a": 0.6, "b": 0.4}).needed == (1, 2)
    assert compile_rule("task_arithmetic", {"a": 0.6, "b": 0.0}).needed == (0, 1)
    assert compile_rule("task_arithmetic", {"a": 0.0}).needed == (0,)
    assert compile_rule("log_pool", {"a": 0.0, "b": 2.0}).needed == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_rule_gives_the_same_of_fewer_rows(name: str) -> None:
    """Pruning drops rows that do not count, and nothing of the result."""
    for seed in range(10):
        values = {"a": 0.0, "b": 0.7, "c": 0.3 if seed % 2 else 0.1}
        rule = compile_rule(name, values)
        pruned, logits = rule.pruned(), random_logits(seed, len(rule.rows))
        assert set(pruned.rows) == {rule.rows[i] for i in rule.needed}
        assert 0 not in pruned.coefficients
        assert torch.equal(pruned(logits[list(rule.needed)]), rule(logits))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_member_is_named(name: str, broken: float) -> None:
    """NaN or +inf anywhere in a member that counts fails the rule, naming row and member."""
    rule = compile_rule(name, {"code": 0.5, "math": 0.3})
    row = rule.rows.index("math")
    logits = random_logits(1, len(rule.rows))
    logits[row, 7] = broken
    with pytest.raises(MemberLogitsError, match=f"member {row} \\(math\\)") as error:
        rule(logits)
    assert (error.value.row, error.value.member) == (row, "math")


def test_a_member_without_any_token_is_broken() -> None:
    """A row of -inf alone is no distribution."""
    rule = compile_rule("linear_pool", {"a": 1.0, "b": 1.0})
    logits = random_logits(2, 2)
    logits[1] = -math.inf
    with pytest.raises(MemberLogitsError, match=r"member 1 \(b\)"):
        rule(logits)


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_member_of_weight_zero_does_no_harm(name: str) -> None:
    """What does not count is not checked and does not poison the rest."""
    rule = compile_rule(name, {"a": 0.5, "b": 0.0, "c": 0.5})
    logits = random_logits(3, len(rule.rows))
    logits[rule.rows.index("b")] = math.nan
    assert rule(logits).isfinite().all()


def test_a_broken_position_is_found_among_many() -> None:
    """With [rows, positions, vocab] one bad position of one member fails the rule."""
    rule = compile_rule("log_pool", {"a": 1.0, "b": 1.0})
    logits = random_logits(4, 10).view(2, 5, 40)
    assert rule(logits).shape == (5, 40)
    logits[0, 3, 0] = math.nan
    with pytest.raises(MemberLogitsError, match=r"member 0 \(a\)"):
        rule(logits)


def test_members_that_rule_each_other_out_leave_nothing() -> None:
    """If every token is banned by some member the log pool has no distribution, and says so."""
    rule = compile_rule("log_pool", {"a": 1.0, "b": 1.0})
    logits = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    with pytest.raises(CombinedLogitsError, match=r"log_pool with coefficients \{a: 0.5, b: 0.5\}"):
        rule(logits)
    linear = compile_rule("linear_pool", {"a": 1.0, "b": 1.0})
    assert linear(logits).softmax(-1).tolist() == pytest.approx([0.5, 0.5])


def test_coefficients_that_overflow_are_named() -> None:
    """Finite members whose combination is beyond float32 fail the rule, not the engine."""
    rule = compile_rule("task_arithmetic", {"a": 1e30})
    logits = torch.tensor([[0.0, 0.0], [1e10, 0.0]])
    with pytest.raises(CombinedLogitsError, match="overflow"):
        rule(logits)


def test_plausibility_rules_out_what_only_a_negative_weight_lifts() -> None:
    """An expert's unlikely token that the amateur finds far less likely stays out."""
    logits = torch.tensor([[4.0, 3.0, -4.0], [4.0, 1.0, -30.0]])  # amateur (base) second by name
    logits = logits.flip(0)
    # z = 2 z_expert - z_base: token 0: 4, token 1: 5, token 2: 22
    plain = compile_rule("task_arithmetic", {"expert": 2.0})(logits)
    assert plain.tolist() == [4.0, 5.0, 22.0]
    masked = compile_rule("task_arithmetic", {"expert": 2.0}, plausibility_alpha=0.1)(logits)
    assert masked.tolist() == [4.0, 5.0, -math.inf]


def test_temperature_before_is_kept_for_the_linear_pool_alone() -> None:
    """Both orders are the same for sums of logits, so only the linear pool remembers one."""
    options = {"temperature_order": "before", "temperature": 0.5}
    for name, expected in (("linear_pool", 0.5), ("log_pool", 1.0), ("task_arithmetic", 1.0)):
        rule = compile_rule(name, {"a": 1.0, "b": 1.0}, **options)  # type: ignore[arg-type]
        assert rule.temperature == expected
    rule = compile_rule("linear_pool", {"a": 1.0, "b": 1.0}, temperature=0.5)
    assert rule.temperature == 1.0


def test_before_and_after_agree_at_temperature_one() -> None:
    """At T = 1 there is nothing to order."""
    logits, weights = random_logits(5, 2), {"a": 1.0, "b": 3.0}
    before = compile_rule("linear_pool", weights, temperature_order="before", temperature=1.0)
    assert torch.equal(before(logits), compile_rule("linear_pool", weights)(logits))


def test_before_gives_the_mixture_of_tempered_members() -> None:
    """A sampler that divides the result by T draws from the mean of the tempered members."""
    logits = random_logits(6, 2)
    rule = compile_rule(
        "linear_pool", {"a": 1.0, "b": 1.0}, temperature_order="before", temperature=0.4
    )
    drawn = (rule(logits) / 0.4).softmax(-1)
    torch.testing.assert_close(drawn, (logits / 0.4).softmax(-1).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "coefficients", "options", "expected"),
    [
        ("soup", {"a": 1.0}, {}, ["there is no rule 'soup'; the rules are task_arithmetic, log_"]),
        ("log_pool", {}, {}, ["an ensemble needs at least one member"]),
        ("log_pool", {"a": math.nan}, {}, ["the coefficient of a must be a number between"]),
        ("task_arithmetic", {"a": 1e31}, {}, ["the coefficient of a must be a number between"]),
        ("task_arithmetic", {"a": math.inf, "b": -math.inf}, {}, ["the coefficient of a", "the c"]),
        ("log_pool", {"a": 1.0, "b": -1.0}, {}, ["the weights [1.0, -1.0] must sum to more than"]),
        ("linear_pool", {"a": 2.0, "b": -1.0}, {}, ["linear_pool takes no negative weights, got "]),
        ("linear_pool", {"a": 0.0}, {}, ["the weights [0.0] must sum to more than 0"]),
        ("log_pool", {"a": 1.0}, {"temperature_order": "inside"}, ["temperature_order must be"]),
        (
            "linear_pool",
            {"a": 1.0},
            {"temperature_order": "before", "temperature": 0.0},
            ["temperature_order 'before' needs a temperature above 0, got 0"],
        ),
        ("log_pool", {"a": 1.0}, {"plausibility_alpha": 1.5}, ["plausibility_alpha must be in [0"]),
        ("log_pool", {"a": 1.0}, {"plausibility_alpha": math.nan}, ["plausibility_alpha must be"]),
        ("linear_pool", {"a": 1.0}, {"plausibility_alpha": 0.1}, ["plausibility_alpha is for"]),
        (
            "linear_pool",
            {"a": -1.0, "b": 2.0},
            {"plausibility_alpha": 0.1},
            ["linear_pool takes no negative weights, got -1 for a", "plausibility_alpha is for"],
        ),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(
    name: str, coefficients: dict[str, float], options: dict[str, object], expected: list[str]
) -> None:
    """Every reason is given, with the value that caused it."""
    found = reasons(name, coefficients, **options)
    assert len(found) == len(expected)
    for reason, start in zip(found, expected, strict=True):
        assert reason.startswith(start)


def test_negative_weights_are_fine_where_they_mean_something() -> None:
    """The log pool takes a negative weight beside a larger positive one, task arithmetic any."""
    assert compile_rule("log_pool", {"a": 2.0, "b": -1.0}).coefficients == (2.0, -1.0)
    assert compile_rule("task_arithmetic", {"a": -1.0}).coefficients == (2.0, -1.0)


def test_a_rule_is_a_value() -> None:
    """Rules are frozen and compare by what they are, so they can be kept and shared."""
    rule = compile_rule("log_pool", {"a": 1.0})
    assert rule == Rule("log_pool", ("a",), (1.0,))
    assert len({rule, compile_rule("log_pool", {"a": 2.0})}) == 1
