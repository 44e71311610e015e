"""Divergences equal their definitions, keep their bounds, and survive ruled-out tokens."""

import math
from collections.abc import Iterator

import pytest
import torch

from ensemble import divergence
from ensemble.divergence import (
    Divergences,
    chunk_len,
    divergences,
    member_divergence,
    token_log_probs,
    top_tokens,
)

INF = math.inf
LN2 = math.log(2)
FIELDS = ("forward_kl", "reverse_kl", "js", "total_variation", "same_top", "top_overlap")


def log_probs(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows).log()


def random_log_probs(
    seed: int, positions: int = 5, vocab: int = 100, scale: float = 3.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(positions, vocab, generator=generator) * scale).log_softmax(-1)


def pairs(num: int = 15) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for seed in range(num):
        p = random_log_probs(seed)
        near = 10.0 ** -(seed % 4)
        yield p, (p + near * random_log_probs(100 + seed)).log_softmax(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) in float64, from log-probabilities without -inf."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def test_two_coins_by_hand() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): every figure worked by hand."""
    found = divergences(log_probs([[0.5, 0.5]]), log_probs([[0.25, 0.75]]), top_k=1)
    # 1/2 ln 2 + 1/2 ln 2/3 and 1/4 ln 1/2 + 3/4 ln 3/2
    assert found.forward_kl.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    assert found.reverse_kl.item() == pytest.approx(0.75 * math.log(3) - LN2, abs=1e-6)
    assert found.total_variation.item() == pytest.approx(0.25)
    # m = (3/8, 5/8): (1/2 ln 4/3 + 1/2 ln 4/5 + 1/4 ln 2/3 + 3/4 ln 6/5) / 2
    js = (0.5 * math.log(16 / 15) + 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)) / 2
    assert found.js.item() == pytest.approx(js, abs=1e-6)


def test_equal_distributions_do_not_diverge() -> None:
    """Of p and p every divergence is 0, and all tokens agree."""
    p = random_log_probs(0, vocab=3000)
    found = divergences(p, p)
    assert found.forward_kl.tolist() == found.reverse_kl.tolist() == [0.0] * 5
    assert found.total_variation.tolist() == [0.0] * 5
    assert found.js.max() < 1e-6
    assert found.same_top.all()
    assert found.top_overlap.tolist() == [1.0] * 5


def test_disjoint_distributions_diverge_as_far_as_they_can() -> None:
    """Without a common token KL is infinite, JS is ln 2 and total variation 1."""
    p, q = log_probs([[0.5, 0.5, 0.0, 0.0]]), log_probs([[0.0, 0.0, 0.3, 0.7]])
    found = divergences(p, q, top_k=2)
    assert found.forward_kl.item() == found.reverse_kl.item() == INF
    assert found.js.item() == pytest.approx(LN2)
    assert found.total_variation.item() == pytest.approx(1.0)
    assert not found.same_top.item()
    assert found.top_overlap.item() == 0.0


def test_divergences_are_their_definitions() -> None:
    """Over random pairs, near and far, they equal float64 sums over the whole vocabulary."""
    for p, q in pairs():
        found, m = divergences(p, q), (p.double().exp() + q.double().exp()).div(2).log()
        js = (kl(p, m) + kl(q, m)) / 2
        variation = (p.double().exp() - q.double().exp()).abs().sum(-1) / 2
        for value, expected in (
            (found.forward_kl, kl(p, q)),
            (found.reverse_kl, kl(q, p)),
            (found.js, js),
            (found.total_variation, variation),
        ):
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_divergences_keep_their_inequalities() -> None:
    """0 <= JS <= ln 2, Pinsker's 2 TV² <= KL, Lin's JS <= TV ln 2, and JS <= (KL + KL) / 4."""
    for p, q in pairs():
        found, slack = divergences(p, q), 1e-6
        assert (found.forward_kl >= 0).all()
        assert (found.js >= 0).all()
        assert (found.js <= LN2).all()
        assert (2 * found.total_variation**2 <= found.forward_kl + slack).all()
        assert (found.js <= found.total_variation * LN2 + slack).all()
        assert (found.js <= (found.forward_kl + found.reverse_kl) / 4 + slack).all()


def test_swapping_the_two_swaps_the_kls() -> None:
    """KL changes direction, everything else is symmetric."""
    for p, q in pairs(5):
        one, other = divergences(p, q), divergences(q, p)
        torch.testing.assert_close(one.forward_kl, other.reverse_kl)
        torch.testing.assert_close(one.js, other.js)
        assert torch.equal(one.total_variation, other.total_variation)
        assert torch.equal(one.same_top, other.same_top)
        assert torch.equal(one.top_overlap, other.top_overlap)


def test_a_token_ruled_out_by_the_candidate_makes_kl_infinite() -> None:
    """KL(p‖q) is infinite where q is 0 and p is not; the other way it is finite."""
    p, q = log_probs([[0.5, 0.5], [0.5, 0.5]]), log_probs([[1.0, 0.0], [0.5, 0.5]])
    found = divergences(p, q)
    assert found.forward_kl.tolist() == [INF, 0.0]
    assert found.reverse_kl.tolist() == [pytest.approx(LN2), 0.0]
    # m = (3/4, 1/4): (1/2 ln 2/3 + 1/2 ln 2 + ln 4/3) / 2
    js = (0.5 * math.log(4 / 3) + math.log(4 / 3)) / 2
    assert found.js.tolist() == [pytest.approx(js, abs=1e-6), pytest.approx(0, abs=1e-6)]


def test_a_token_ruled_out_by_both_counts_for_nothing() -> None:
    """-inf on both sides changes no figure: it is as if the token were not in the vocabulary."""
    p, q = random_log_probs(1), random_log_probs(2)
    banned = torch.full((5, 3), -INF)
    plain = divergences(p, q)
    with_banned = divergences(torch.cat([p, banned], 1), torch.cat([q, banned], 1))
    for name in FIELDS:
        torch.testing.assert_close(getattr(with_banned, name), getattr(plain, name))


def test_probabilities_below_float32_do_no_harm() -> None:
    """Log-probabilities of -200 have probability 0 in float32, and give no NaN."""
    p, q = torch.tensor([[0.0, -200.0, -300.0]]), torch.tensor([[0.0, -300.0, -200.0]])
    found = divergences(p, q)
    for name in ("forward_kl", "reverse_kl", "js", "total_variation"):
        assert getattr(found, name).item() == pytest.approx(0.0, abs=1e-7)


def test_a_rounded_normaliser_counts_for_nothing() -> None:
    """Log-probabilities that sum to 1.0001 for want of precision are no divergence of 0.0001."""
    p = random_log_probs(15, vocab=3000)
    found = divergences(p, p + 1e-4)
    for name in ("forward_kl", "reverse_kl", "js"):
        assert getattr(found, name).max() < 2e-6


def test_nan_stays_at_its_position() -> None:
    """A broken position is not hidden, and its neighbours are not touched."""
    p, q = random_log_probs(3), random_log_probs(4)
    q[2, 5] = math.nan
    found = divergences(p, q)
    for name in ("forward_kl", "reverse_kl", "js", "total_variation"):
        assert getattr(found, name).isnan().tolist() == [False, False, True, False, False]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One position at a time, or all at once: the same figures."""
    p, q = random_log_probs(5, positions=37), random_log_probs(6, positions=37)
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", {"cpu": 10**9})
    whole = divergences(p, q)
    for elements in (1, 100, 700):
        monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", {"cpu": elements})
        parts = divergences(p, q)
        for name in FIELDS:
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_a_chunk_is_bounded_by_its_elements() -> None:
    """The larger the vocabulary the fewer positions at a time, and never none."""
    assert chunk_len(torch.empty(1, 49152)) == 2
    assert chunk_len(torch.empty(1, 151936)) == 1
    assert chunk_len(torch.empty(1, 64)) == 2048


def test_inputs_are_left_alone() -> None:
    """One reference serves many candidates, so nothing is written into it."""
    p, q = random_log_probs(7), random_log_probs(8)
    before = p.clone(), q.clone()
    divergences(p, q)
    member_divergence(torch.stack([p, q]), [1.0, 1.0])
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


def test_the_same_top_token_breaks_ties_as_greedy_decoding_does() -> None:
    """Of equals the first counts, on both sides."""
    p = log_probs([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])
    q = log_probs([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.2, 0.3, 0.5]])
    assert divergences(p, q).same_top.tolist() == [True, False, False]


def test_the_same_top_token_is_that_of_argmax() -> None:
    """Over random pairs it says whether two argmaxes are equal."""
    for p, q in pairs():
        assert torch.equal(divergences(p, q).same_top, p.argmax(-1) == q.argmax(-1))


def test_the_overlap_of_top_tokens_by_hand() -> None:
    """Tokens {0, 1} against {1, 2} share one of two; order among them does not matter."""
    p, q = log_probs([[0.5, 0.3, 0.15, 0.05]]), log_probs([[0.05, 0.3, 0.5, 0.15]])
    assert divergences(p, q, top_k=2).top_overlap.item() == 0.5
    assert divergences(p, q, top_k=4).top_overlap.item() == 1.0
    assert divergences(p, q, top_k=100).top_overlap.item() == 1.0


@pytest.mark.parametrize("vocab", [7, 4096, 4097, 6400, 49152])
@pytest.mark.parametrize("top_k", [1, 10, 100])
def test_top_tokens_are_those_of_topk(vocab: int, top_k: int) -> None:
    """The search by columns finds what a search of everything finds."""
    for seed in range(3):
        scores = random_log_probs(seed, 3, vocab)
        found = top_tokens(scores, top_k)
        assert torch.equal(scores.gather(1, found), scores.topk(min(top_k, vocab)).values)
        assert all(len(set(ids)) == min(top_k, vocab) for ids in found.tolist())


def test_top_tokens_in_one_column() -> None:
    """The best tokens may all sit in one column of the search, or in the rest after it."""
    scores = torch.zeros(1, 64 * 100 + 30)
    column = torch.arange(5) * 100 + 42
    scores[0, column] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert top_tokens(scores, 5).tolist() == [column.tolist()]
    scores[0, -1] = 6.0
    assert top_tokens(scores, 2).tolist() == [[6429, 42]]


def test_parts_are_put_together_in_order() -> None:
    """Comparisons of consecutive positions add up to the comparison of all."""
    p, q = random_log_probs(9), random_log_probs(10)
    whole = divergences(p, q)
    joined = Divergences.cat([divergences(p[:2], q[:2]), divergences(p[2:], q[2:])])
    for name in FIELDS:
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))


def test_the_log_probability_of_the_token_that_followed() -> None:
    """One token per position is picked."""
    p = random_log_probs(11, positions=3)
    tokens = torch.tensor([4, 99, 0])
    assert token_log_probs(p, tokens).tolist() == [p[0, 4], p[1, 99], p[2, 0]]


def test_members_that_agree_have_no_spread() -> None:
    """Equal members have a generalised divergence of 0."""
    p = random_log_probs(12)
    assert member_divergence(torch.stack([p, p, p]), [1.0, 2.0, 3.0]).max() < 1e-6


def test_members_without_a_common_token_have_the_entropy_of_their_weights() -> None:
    """At weights 1 : 3 that is -1/4 ln 1/4 - 3/4 ln 3/4, the most there can be."""
    members = log_probs([[1.0, 0.0], [0.0, 1.0]])[:, None]
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert member_divergence(members, [1.0, 3.0]).item() == pytest.approx(entropy, abs=1e-6)


def test_two_members_of_equal_weight_have_the_jensen_shannon_divergence() -> None:
    """The generalised divergence reduces to the plain one."""
    for p, q in pairs(5):
        spread = member_divergence(torch.stack([p, q]), [1.0, 1.0])
        torch.testing.assert_close(spread, divergences(p, q).js, rtol=1e-4, atol=1e-6)


def test_a_member_of_weight_zero_has_no_spread() -> None:
    """What does not count is not looked at, broken or not."""
    p, q = random_log_probs(13), random_log_probs(14)
    members = torch.stack([p, torch.full_like(p, math.nan), q])
    expected = member_divergence(torch.stack([p, q]), [1.0, 1.0])
    assert torch.equal(member_divergence(members, [1.0, 0.0, 1.0]), expected)
