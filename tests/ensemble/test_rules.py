"""Rules combine logits as their formulas say, reduce exactly, and never poison or underflow."""

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from ensemble.errors import RuleError
from ensemble.rules import (
    affine,
    base_coefficient,
    linear_pool,
    log_pool,
    plausible,
    shares,
    task_arithmetic,
)

Pool = Callable[[torch.Tensor, Sequence[float]], torch.Tensor]
POOLS: list[Pool] = [log_pool, linear_pool]
INF = math.inf


def random_logits(seed: int, num: int = 3, vocab: int = 50, scale: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, vocab, generator=generator) * scale


def random_weights(seed: int, num: int = 3) -> list[float]:
    weights = torch.rand(num, generator=torch.Generator().manual_seed(1000 + seed)) + 0.05
    return [float(weight) for weight in weights]


def cases(num_seeds: int = 20) -> Iterator[tuple[torch.Tensor, list[float]]]:
    for seed in range(num_seeds):
        num = 2 + seed % 4
        yield random_logits(seed, num), random_weights(seed, num)


def log_p(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_task_arithmetic_by_hand() -> None:
    """z0 + 0.5 (z1 - z0) + 2 (z2 - z0), token by token."""
    logits = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 1.0]])
    # token 0: 1 + 0.5 * 2 + 2 * 0 = 2; token 1: 2 + 0.5 * 0 + 2 * -1 = 0
    assert torch.equal(task_arithmetic(logits, [0.5, 2.0]), torch.tensor([2.0, 0.0]))


def test_log_pool_by_hand() -> None:
    """The geometric mean of (0.8, 0.2) and (0.2, 0.8) at weights 2 and 1 is (4, 1)^(1/3) to 1."""
    pooled = log_pool(torch.tensor([log_p(0.8, 0.2), log_p(0.2, 0.8)]), [2.0, 1.0]).softmax(-1)
    # 0.8^(2/3) 0.2^(1/3) : 0.2^(2/3) 0.8^(1/3) = (0.8 / 0.2)^(1/3) : 1 = 1.5874 : 1
    assert pooled.tolist() == pytest.approx([1.587401 / 2.587401, 1 / 2.587401], abs=1e-6)


def test_linear_pool_by_hand() -> None:
    """The arithmetic mean of (0.8, 0.2) and (0.2, 0.8) at weights 3 and 1 is (0.65, 0.35)."""
    pooled = linear_pool(torch.tensor([log_p(0.8, 0.2), log_p(0.2, 0.8)]), [3.0, 1.0])
    assert pooled.softmax(-1).tolist() == pytest.approx([0.65, 0.35], abs=1e-6)


def test_task_arithmetic_is_its_formula() -> None:
    """Over random logits and lambdas of any sign it equals the formula, summed in float64."""
    for logits, weights in cases():
        lambdas = [weight - 0.5 for weight in weights[1:]]
        wide = logits.double()
        expected = wide[0] + sum(
            value * (z - wide[0]) for value, z in zip(lambdas, wide[1:], strict=True)
        )
        found = task_arithmetic(logits, lambdas).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_pools_are_their_formulas() -> None:
    """Over random logits both pools give the distribution that float64 gives."""
    for logits, weights in cases():
        log_probs = logits.double().log_softmax(-1)
        portions = torch.tensor(weights, dtype=torch.float64)[:, None]
        portions = portions / portions.sum()
        logs = (portions * log_probs).sum(0).log_softmax(-1)
        mean = (portions * log_probs.exp()).sum(0).log()
        found = [pool(logits, weights).double().log_softmax(-1) for pool in POOLS]
        torch.testing.assert_close(found[0], logs, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1], mean, rtol=0, atol=1e-5)


def test_lambda_zero_is_the_base_to_the_bit() -> None:
    """Task arithmetic with every lambda 0 returns the base's own logits."""
    logits = random_logits(1)
    assert torch.equal(task_arithmetic(logits, [0.0, 0.0]), logits[0])


@pytest.mark.parametrize("member", [1, 2])
def test_lambda_one_is_that_member_to_the_bit(member: int) -> None:
    """Task arithmetic with lambda = (1, 0) or (0, 1) returns that member's own logits."""
    logits = random_logits(2)
    lambdas = [float(member == 1), float(member == 2)]
    assert torch.equal(task_arithmetic(logits, lambdas), logits[member])


@pytest.mark.parametrize("pool", POOLS)
def test_one_weight_is_that_member_to_the_bit(pool: Pool) -> None:
    """A pool with all its weight on one member, or of one member, returns that member's logits."""
    logits = random_logits(3)
    assert torch.equal(pool(logits, [0.0, 0.3, 0.0]), logits[1])
    assert torch.equal(pool(logits[:1], [0.7]), logits[0])


def test_equal_members_are_one_member() -> None:
    """K equal members give that member: sums of logits to the bit, the linear pool to 1e-6."""
    for seed in range(20):
        num = 2 + seed % 5
        one = random_logits(seed, 1)
        logits, weights = one.expand(num, -1), random_weights(seed, num)
        assert torch.equal(log_pool(logits, weights), one[0])
        assert torch.equal(task_arithmetic(logits, weights[1:]), one[0])
        linear = linear_pool(logits, weights)
        torch.testing.assert_close(linear, one[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(linear.softmax(-1), one[0].softmax(-1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("pool", POOLS)
def test_a_constant_added_to_a_member_changes_nothing(pool: Pool) -> None:
    """Pools are of distributions, and a constant added to logits changes no distribution."""
    for logits, weights in cases():
        moved = logits + torch.arange(len(logits))[:, None] * 3.5
        torch.testing.assert_close(
            pool(moved, weights).log_softmax(-1), pool(logits, weights).log_softmax(-1),
            rtol=1e-5, atol=2e-5,
        )  # fmt: skip


@pytest.mark.parametrize("pool", POOLS)
def test_weights_count_by_their_ratio(pool: Pool) -> None:
    """Weights are divided by their sum, so a common factor has no effect."""
    logits, weights = random_logits(4), random_weights(4)
    doubled = [2 * weight for weight in weights]
    assert torch.equal(pool(logits, doubled), pool(logits, weights))


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_is_no_worse_than_its_members_on_average(pool: Pool) -> None:
    """At every token the pool's loss is at most the weighted mean of its members' losses."""
    for logits, weights in cases():
        portions = torch.tensor(shares(weights))[:, None]
        mean = (portions * logits.log_softmax(-1)).sum(0)
        assert (pool(logits, weights).log_softmax(-1) >= mean - 1e-5).all()


def test_the_log_pool_and_task_arithmetic_agree_where_lambdas_sum_to_one() -> None:
    """With lambdas of sum 1 the base cancels, and task arithmetic is the log pool."""
    for logits, weights in cases():
        portions = shares(weights[1:])
        base_free = log_pool(logits[1:], portions)
        torch.testing.assert_close(task_arithmetic(logits, portions), base_free)


@pytest.mark.parametrize("broken", [math.nan, INF, -INF])
def test_a_member_of_weight_zero_is_never_looked_at(broken: float) -> None:
    """NaN or infinite logits of a member that counts for nothing leave the others alone."""
    logits = random_logits(5, 4)
    logits[2] = broken
    kept = logits[[0, 1, 3]]
    assert torch.equal(
        task_arithmetic(logits, [0.5, 0.0, -0.2]), task_arithmetic(kept, [0.5, -0.2])
    )
    for pool in POOLS:
        assert torch.equal(pool(logits, [0.5, 0.2, 0.0, 0.3]), pool(kept, [0.5, 0.2, 0.3]))


def test_a_base_that_cancels_is_never_looked_at() -> None:
    """With lambdas of sum 1, up to rounding, a broken base does no harm."""
    logits = random_logits(6)
    logits[0] = math.nan
    assert task_arithmetic(logits, [0.3, 0.7]).isfinite().all()
    thirds = torch.cat([logits, logits[1:2]])
    assert task_arithmetic(thirds, [0.1, 0.2, 0.7]).isfinite().all()


def test_a_banned_token_is_vetoed_by_sums_and_kept_by_the_mean() -> None:
    """-inf in one member: the log pool drops the token, the linear pool keeps the other's share."""
    logits = torch.tensor([[-INF, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]])
    assert log_pool(logits, [0.5, 0.5]).tolist() == [-INF, 0.0, 0.0]
    # (0, 1/2, 1/2) and (1/2, 1/4, 1/4) at one half each
    pooled = linear_pool(logits, [0.5, 0.5]).softmax(-1)
    assert pooled.tolist() == pytest.approx([0.25, 0.375, 0.375], abs=1e-6)


@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
def test_a_token_banned_everywhere_stays_banned(factor: float) -> None:
    """-inf minus -inf is not NaN, and a negative lambda does not make +inf of -inf."""
    both = torch.tensor([[-INF, 1.0], [-INF, 3.0]])
    assert task_arithmetic(both, [factor]).tolist() == [-INF, 1.0 + 2.0 * factor]
    one = torch.tensor([[0.0, 1.0], [-INF, 3.0]])
    assert task_arithmetic(one, [factor])[0] == -INF
    assert linear_pool(both, [0.5, 0.5])[0] == -INF


def test_the_linear_pool_never_underflows() -> None:
    """Probabilities far below the smallest float32 keep their logarithms."""
    logits = torch.tensor([[0.0, -500.0, -900.0], [0.0, -700.0, -300.0]])
    pooled = linear_pool(logits, [1.0, 1.0]).log_softmax(-1)
    # half of exp(-500), half of exp(-300): the other member adds nothing
    assert pooled.tolist() == pytest.approx([0.0, -500 - math.log(2), -300 - math.log(2)])


def test_a_tiny_weight_keeps_a_token_alive() -> None:
    """A weight of 1e-6 on the only member that likes a token gives it that probability."""
    logits = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])
    pooled = linear_pool(logits, [1.0, 1e-6]).softmax(-1)
    assert pooled[1].item() == pytest.approx(1e-6, rel=1e-3)


def test_temperature_inside_the_linear_pool() -> None:
    """With T, softmax of the result over T is the mean of the members' tempered distributions."""
    for temperature in (0.3, 0.7, 1.0, 2.5):
        for logits, weights in cases(5):
            portions = torch.tensor(shares(weights))[:, None]
            expected = (portions * (logits / temperature).softmax(-1)).sum(0)
            found = linear_pool(logits, weights, temperature) / temperature
            torch.testing.assert_close(found.softmax(-1), expected, rtol=1e-4, atol=1e-6)


def test_temperature_order_matters_for_the_linear_pool_only() -> None:
    """Tempering before and after differ for the linear pool, and commute for the log pool."""
    logits, weights = random_logits(7), random_weights(7)
    before = linear_pool(logits, weights, 0.5) / 0.5
    after = linear_pool(logits, weights) / 0.5
    assert (before.softmax(-1) - after.softmax(-1)).abs().max() > 0.01
    torch.testing.assert_close(log_pool(logits / 0.5, weights), log_pool(logits, weights) / 0.5)


def test_positions_are_independent() -> None:
    """[members, positions, vocab] gives what each position gives alone."""
    logits = torch.stack([random_logits(seed) for seed in range(4)], dim=1)
    weights = random_weights(8)
    for combine in (log_pool, linear_pool):
        alone = torch.stack([combine(logits[:, t], weights) for t in range(4)])
        torch.testing.assert_close(combine(logits, weights), alone)
    alone = torch.stack([task_arithmetic(logits[:, t], weights[1:]) for t in range(4)])
    torch.testing.assert_close(task_arithmetic(logits, weights[1:]), alone)


def test_inputs_are_left_alone() -> None:
    """No rule writes into the logits that it is given."""
    logits = random_logits(9)
    logits[1, 3] = -INF
    before = logits.clone()
    task_arithmetic(logits, [0.5, -0.5])
    log_pool(logits, [1.0, 1.0, 1.0])
    linear_pool(logits, [1.0, 1.0, 1.0], 0.5)
    plausible(logits, [1.0, 1.0, -1.0], 0.1)
    assert torch.equal(logits, before)


def test_plausible_tokens_by_hand() -> None:
    """A token stays if the expert gives it alpha times the probability of its best token."""
    logits = torch.tensor([log_p(0.6, 0.3, 0.07, 0.03), log_p(0.1, 0.1, 0.1, 0.7)])
    # the best has 0.6; 0.1 of that is 0.06, 0.4 of it 0.24
    assert plausible(logits, [2.0, -1.0], 0.1).tolist() == [True, True, True, False]
    assert plausible(logits, [2.0, -1.0], 0.4).tolist() == [True, True, False, False]
    assert plausible(logits, [2.0, -1.0], 1.0).tolist() == [True, False, False, False]


def test_plausibility_is_that_of_all_experts() -> None:
    """Several members of positive coefficient judge by their log pool."""
    logits = torch.tensor([log_p(0.5, 0.4, 0.1), log_p(0.5, 0.1, 0.4), log_p(0.1, 0.1, 0.8)])
    # geometric mean: 0.5, 0.2, 0.2; ratio 0.4
    assert plausible(logits, [1.0, 1.0, -1.0], 0.39).tolist() == [True, True, True]
    assert plausible(logits, [1.0, 1.0, -1.0], 0.41).tolist() == [True, False, False]


def test_the_best_token_is_always_plausible() -> None:
    """The constraint leaves at least one token, at every alpha."""
    for logits, weights in cases():
        signed = [1.0, *(weight - 0.5 for weight in weights[1:])]
        for alpha in (0.01, 0.5, 1.0):
            assert plausible(logits, signed, alpha).any()


def test_shares_sum_to_one() -> None:
    """Weights are divided by their sum, negative ones too."""
    assert shares([3.0, 1.0]) == (0.75, 0.25)
    assert shares([2.0, -1.0]) == (2.0, -1.0)
    assert shares([0.0, 5.0]) == (0.0, 1.0)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [-2.0, 1.0], [0.1, 0.2, -0.3]])
def test_a_sum_of_zero_or_less_is_refused(weights: list[float]) -> None:
    """Weights whose sum is not above 0, up to rounding, cannot be normalised."""
    with pytest.raises(RuleError, match="must sum to more than 0"):
        shares(weights)


def test_weights_that_are_not_numbers_are_refused() -> None:
    """NaN and infinite weights have no shares."""
    for weight in (math.nan, INF):
        with pytest.raises(RuleError, match="must be finite"):
            shares([1.0, weight])


def test_the_linear_pool_takes_no_negative_weights() -> None:
    """A negative share would make negative probabilities."""
    with pytest.raises(RuleError, match="no negative weights, got -1"):
        linear_pool(random_logits(0, 2), [2.0, -1.0])


@pytest.mark.parametrize(
    ("lambdas", "expected"),
    [
        ([0.4, 0.4], 0.2), ([1.0, 0.0], 0.0), ([0.1, 0.2, 0.7], 0.0), ([0.0, 0.0], 1.0),
        ([1 / 3] * 3, 0.0), ([1.5], -0.5), ([], 1.0),
    ],
)  # fmt: skip
def test_the_bases_coefficient(lambdas: list[float], expected: float) -> None:
    """One minus the sum of lambdas, and exactly 0 where rounding alone keeps it from that."""
    found = base_coefficient(lambdas)
    assert found == pytest.approx(expected, abs=1e-15)
    assert (found == 0) == (expected == 0)


def test_an_affine_sum_is_exact_about_its_anchor() -> None:
    """A token on which members agree is not moved by rounding, however large the logits."""
    logits = torch.tensor([[1e6, 1.0], [1e6, 2.0], [1e6, 4.0]])
    assert affine(logits, [0.2, 0.3, 0.5])[0] == 1e6
