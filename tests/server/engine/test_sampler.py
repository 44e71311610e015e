"""Tokens are drawn from the distribution that the parameters say."""

import math

import pytest
import torch
from scipy.stats import chisquare

from server.engine.detokenizer import Detokenizer
from server.engine.group import Group
from server.engine.reader import token_logprobs
from server.engine.request import Member, Request, SamplingParams
from server.engine.sampler import sample
from tests.server.engine.conftest import Bench

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
EOS = frozenset({5})


@pytest.fixture
def make_group(bench: Bench):
    """A group with a prompt of tokens 0 and 1 and the given sampling."""

    def make(choice: int = 0, output: tuple[int, ...] = (), **sampling: object) -> Group:
        params = SamplingParams(**sampling)  # type: ignore[arg-type]
        request = Request((Member((0, 1), bench.empty),), params, choice)
        group = Group(request, Detokenizer(lambda ids: "", (), ()))
        group.output_tokens = list(output)
        group.rows[0].tokens += output
        return group

    return make


def draws(make_group, count: int, logits: torch.Tensor = LOGITS, **sampling: object) -> list[int]:
    """`count` draws with one seed: choices 0, 1, 2, …"""
    groups = [make_group(choice=i, seed=3, **sampling) for i in range(count)]
    return [token.token_id for token in sample(logits.expand(count, -1), groups, EOS)]


def assert_distribution(tokens: list[int], expected: torch.Tensor) -> None:
    """A chi-square test, rare tokens counted as one; those of probability zero must not occur."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = expected[possible].double()
    wanted *= len(tokens) / wanted.sum()
    order = wanted.argsort()
    first = int((wanted[order].cumsum(0) < 5).sum())  # rarer ones are counted with this one
    pooled = [
        torch.cat([part[order][: first + 1].sum()[None], part[order][first + 1 :]])
        for part in (counts[possible], wanted)
    ]
    assert chisquare(pooled[0].numpy(), pooled[1].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(make_group, temperature: float) -> None:
    """Draws follow softmax(z / T)."""
    tokens = draws(make_group, 4000, temperature=temperature)
    assert_distribution(tokens, (LOGITS / temperature).softmax(-1))


def test_top_k(make_group) -> None:
    """Only the k best are drawn, in proportion."""
    expected = LOGITS.softmax(-1)
    expected[3:] = 0
    assert_distribution(draws(make_group, 3000, top_k=3), expected)


def test_top_p_keeps_the_token_that_reaches_p(make_group) -> None:
    """The smallest set of best tokens that holds p is kept, the one that reaches p included."""
    expected = LOGITS.softmax(-1)
    top_p = float(expected[:2].sum()) - 0.01
    expected[2:] = 0
    assert_distribution(draws(make_group, 3000, top_p=top_p), expected)


def test_top_p_over_a_flat_vocabulary(make_group) -> None:
    """Where the best 256 hold less than p, all tokens are considered."""
    tokens = draws(make_group, 500, torch.zeros(1000), top_p=0.9)
    assert 256 < len(set(tokens)) <= 900


def test_min_p(make_group) -> None:
    """Tokens less likely than min_p times the best are never drawn."""
    expected = LOGITS.softmax(-1)
    expected[expected < 0.2 * expected.max()] = 0
    assert_distribution(draws(make_group, 3000, min_p=0.2), expected)


def test_greedy_ignores_the_rest(make_group) -> None:
    """Temperature 0 takes the best token whatever the seed."""
    assert {0} == set(draws(make_group, 10, temperature=0.0, top_p=0.1))


def test_draws_depend_on_seed_choice_and_index_alone(make_group) -> None:
    """The same seed, choice and token index draw the same, in any row of any batch; another index
    draws anew.
    """
    one = [make_group(seed=5, choice=2)]
    many = [make_group(seed=9), make_group(seed=5, choice=2), make_group(seed=9, choice=2)]
    logits = torch.zeros(1, 50_000)
    (alone,) = sample(logits, one, EOS)
    assert alone == sample(logits.expand(3, -1), many, EOS)[1]
    later = make_group(seed=5, choice=2, output=(3,))
    assert alone != sample(logits, [later], EOS)[0]


def test_rounding_does_not_change_draws(make_group) -> None:
    """Logits that move by some 1e-5, as in another batch, draw the same token, in the tail too."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(1, 20_000)  # a tail of many tokens with next to no probability
    noisy = logits + 1e-5 * torch.randn(800, 20_000)
    groups = [make_group(choice=i, seed=3) for i in range(800)]
    exact = [token.token_id for token in sample(logits.expand(800, -1), groups, EOS)]
    assert exact == [token.token_id for token in sample(noisy, groups, EOS)]


def test_requests_without_a_seed_differ(make_group) -> None:
    """Without a seed each request has one of its own."""
    groups = [make_group() for _ in range(20)]
    assert len({token.token_id for token in sample(LOGITS.expand(20, -1), groups, EOS)}) > 1


def test_presence_and_frequency_count_the_output_only(make_group) -> None:
    """Each generated token loses presence once and frequency as often as it came; prompt tokens
    lose nothing.
    """
    logits = torch.tensor([[0.0, 0.0, 1.0, 2.5, 0.1, -9.0]])
    group = make_group(
        output=(3, 3, 2), temperature=0.0, presence_penalty=0.5, frequency_penalty=1.0
    )
    # 2: 1 - 1.5, 3: 2.5 - 2.5, 4: 0.1, 0 and 1: 0
    assert sample(logits, [group], EOS)[0].token_id == 4


def test_repetition_counts_the_prompt_too(make_group) -> None:
    """Positive logits of seen tokens are divided by the penalty, negative ones multiplied."""
    logits = torch.tensor([[1.0, -0.1, 0.6, -0.15, -9.0, -9.0]])
    assert (
        sample(logits, [make_group(temperature=0.0, repetition_penalty=2.0)], EOS)[0].token_id == 2
    )
    negative = torch.tensor([[-1.0, -0.1, -9.0, -0.15, -9.0, -9.0]])
    assert (
        sample(negative, [make_group(temperature=0.0, repetition_penalty=2.0)], EOS)[0].token_id
        == 3
    )


def test_logit_bias(make_group) -> None:
    """A bias is added to its token's logit."""
    group = make_group(temperature=0.0, logit_bias={4: 100.0})
    assert sample(LOGITS[None], [group], EOS)[0].token_id == 4


def test_ends_are_impossible_before_min_tokens(make_group) -> None:
    """Before `min_tokens` neither the model's stop token nor the request's can be drawn."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, 8.0, 9.0]])
    early = make_group(temperature=0.0, min_tokens=2, stop_token_ids=(4,), output=(0,))
    late = make_group(temperature=0.0, min_tokens=2, stop_token_ids=(4,), output=(0, 0))
    assert sample(logits, [early], EOS)[0].token_id < 4
    assert sample(logits, [late], EOS)[0].token_id == 5


def test_logprobs_are_of_the_unmodified_distribution(make_group) -> None:
    """Reported log-probabilities are at temperature 1, before penalties, bias and truncation."""
    group = make_group(temperature=0.3, top_k=1, logit_bias={2: 50.0}, logprobs=2)
    (report,) = sample(LOGITS[None], [group], EOS)
    expected = LOGITS.log_softmax(-1)
    assert report.token_id == 2
    assert math.isclose(report.logprob, expected[2], rel_tol=1e-6)
    assert [token_id for token_id, _ in report.top] == [0, 1]


def test_only_what_was_asked_is_reported(make_group) -> None:
    """Rows that want no log-probabilities get none, beside rows that do."""
    groups = [make_group(), make_group(logprobs=0), make_group(logprobs=3)]
    reports = sample(LOGITS.expand(3, -1), groups, EOS)
    assert [(r.logprob is None, len(r.top)) for r in reports] == [(True, 0), (False, 0), (False, 3)]


def test_a_greedy_token_is_the_first_of_its_top() -> None:
    """Among equal log-probabilities the chosen token comes first."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0]])
    for token_id in (1, 2, 3):
        (report,) = token_logprobs(logits, [token_id], [2])
        assert (token_id, report.logprob) == report.top[0]
        assert len(report.top) == 2
