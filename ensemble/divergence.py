"""How far two models' next-token distributions are apart, position by position, in nats.

Works on log-probabilities, `[positions, vocab]`, normalised by the caller (`log_softmax`), so that
one reference is normalised once for many candidates. Positions are taken in chunks that fit the
processor's cache, so that a vocabulary of 150,000 needs little memory beside its inputs.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch

from ensemble.rules import shares

CHUNK_ELEMENTS = {"cpu": 2**17, "cuda": 2**22}
"""Elements of a chunk: on a CPU half a megabyte, so that the dozen passes over it hit the cache."""

FLOOR = -1e4
"""Stands in for the -inf of a ruled-out token: its probability is 0 all the same, and no 0 * inf
comes up. Infinite divergences are put back afterwards."""

COLUMN_LEN = 64
"""Tokens per column in the search for the best ones."""

NUM_TIED = 16
"""Tokens looked at for the most likely one: bfloat16 logits often tie."""


@dataclass(frozen=True, slots=True, eq=False)
class Divergences:
    """A reference p and a candidate q compared at each position; every tensor is [positions].

    `forward_kl` is KL(p‖q), infinite where q rules out what p does not; `reverse_kl` is KL(q‖p).
    `js` is the Jensen-Shannon divergence, at most ln 2, and `total_variation` half the sum of
    |p - q|: 1 minus it is the overlap, and the rate at which drafts of one are accepted by the
    other. `same_top` (bool) says whether both have the same most likely token, `top_overlap` which
    share of the k most likely tokens they have in common.
    """

    forward_kl: torch.Tensor
    reverse_kl: torch.Tensor
    js: torch.Tensor
    total_variation: torch.Tensor
    same_top: torch.Tensor
    top_overlap: torch.Tensor

    @classmethod
    def cat(cls, parts: Iterable[Self]) -> Self:
        """All positions of several comparisons, in order."""
        columns = zip(*([getattr(p, f.name) for f in fields(cls)] for p in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


def divergences(log_p: torch.Tensor, log_q: torch.Tensor, top_k: int = 10) -> Divergences:
    """Compare a reference's and a candidate's log-probabilities, both float [positions, vocab].

    Differences below about 1e-6 nats are rounding of float32. NaN in, NaN out, at its position.
    """
    assert log_p.shape == log_q.shape, (log_p.shape, log_q.shape)
    assert log_p.dim() == 2, log_p.shape
    assert len(log_p) > 0, "no positions"
    num = min(chunk_len(log_p), len(log_p))
    space = log_p.new_empty(6, num, log_p.shape[1])
    parts = [_sums(p, q, space) for p, q in _chunks(log_p, log_q, num)]
    # The search for the best tokens needs no room, and many small calls: larger chunks.
    tops = [_top_agreement(p, q, top_k) for p, q in _chunks(log_p, log_q, 32 * num)]
    return Divergences(*map(torch.cat, (*zip(*parts, strict=True), *zip(*tops, strict=True))))


def token_log_probs(log_probs: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of one token per position: [positions, vocab], [positions] -> [positions].

    `token_ids[t]` is the token that followed: the one that `log_probs[t]` is about.
    """
    return log_probs.gather(1, token_ids[:, None]).squeeze(1)


def member_divergence(log_probs: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """How much an ensemble's members disagree: [members, positions, vocab] -> nats [positions].

    The generalised Jensen-Shannon divergence, `sum_i w_i KL(p_i‖sum_j w_j p_j)` (Lin 1991,
    section V): 0 if all agree, at most the entropy of the weights. Weights are divided by their
    sum; none is negative, and members of weight zero do not count.
    """
    portions = shares(weights)
    assert min(portions) >= 0, weights
    used = [index for index, portion in enumerate(portions) if portion > 0]
    counted = [portions[index] for index in used]
    chunks = torch.split(log_probs, chunk_len(log_probs), dim=1)
    return torch.cat([_spread(chunk[used], counted) for chunk in chunks])


def top_tokens(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """Ids of the k largest scores of each position, best first: [positions, vocab] -> [.., k].

    The vocabulary is laid out in columns, and only the columns with the largest maxima are
    searched: no other can hold one of the k. Several times faster than `topk` over all.
    """
    num_tokens = scores.shape[1]
    if num_tokens <= COLUMN_LEN**2:
        return scores.topk(min(top_k, num_tokens), dim=-1).indices
    end = num_tokens - num_tokens % COLUMN_LEN  # the few tokens after it are all searched
    columns = torch.unflatten(scores[:, :end], 1, (COLUMN_LEN, -1))
    ids = torch.arange(num_tokens, device=scores.device)
    chosen = columns.amax(dim=1).topk(min(top_k, columns.shape[2]), dim=-1).indices[:, None]
    found = columns.gather(2, chosen.expand(-1, COLUMN_LEN, -1)).flatten(1)
    found_ids = (ids[: end : columns.shape[2], None] + chosen).flatten(1)
    found = torch.cat([found, scores[:, end:]], dim=1)
    found_ids = torch.cat([found_ids, ids[end:].expand(len(scores), -1)], dim=1)
    return found_ids.gather(1, found.topk(top_k, dim=-1).indices)


def chunk_len(log_probs: torch.Tensor) -> int:
    """Positions per chunk for this vocabulary and device."""
    elements = CHUNK_ELEMENTS.get(log_probs.device.type, CHUNK_ELEMENTS["cpu"])
    return max(1, elements // max(1, log_probs.shape[-1]))


def _chunks(
    log_p: torch.Tensor, log_q: torch.Tensor, num: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(torch.split(log_p, num), torch.split(log_q, num), strict=True)


def _sums(
    log_p: torch.Tensor, log_q: torch.Tensor, space: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """KL both ways, Jensen-Shannon and total variation of one chunk, each [positions].

    `space`: six buffers, [6, positions, vocab]; fresh memory would cost more than the arithmetic.
    """
    finite_p, finite_q, p, q, third, work = space[:, : len(log_p)]
    torch.clamp(log_p, min=FLOOR, out=finite_p)
    torch.clamp(log_q, min=FLOOR, out=finite_q)
    torch.exp(finite_p, out=p)
    torch.exp(finite_q, out=q)
    log_ratio = torch.sub(finite_p, finite_q, out=third)
    # What rounding keeps p and q from summing to 1 cancels to first order.
    excess = p.sum(dim=-1) - q.sum(dim=-1)
    forward = torch.mul(p, log_ratio, out=work).sum(dim=-1) - excess
    reverse = excess - torch.mul(q, log_ratio, out=work).sum(dim=-1)
    variation = torch.sub(p, q, out=work).abs_().sum(dim=-1) / 2
    mean = torch.add(p, q, out=third).mul_(0.5)
    log_mean = mean.clamp_min_(torch.finfo(p.dtype).tiny).log_()
    js = finite_p.sub_(log_mean).mul_(p).sum(dim=-1) + finite_q.sub_(log_mean).mul_(q).sum(dim=-1)
    forward = forward.masked_fill(_escapes(log_p, log_q), math.inf).clamp_min(0)
    reverse = reverse.masked_fill(_escapes(log_q, log_p), math.inf).clamp_min(0)
    return forward, reverse, (js / 2).clamp(0, math.log(2)), variation.clamp_max(1)


def _top_agreement(
    log_p: torch.Tensor, log_q: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the most likely tokens are the same, and the overlap of the best k: [positions]."""
    num = max(top_k, NUM_TIED)
    top_p, top_q = top_tokens(log_p, num), top_tokens(log_q, num)
    same_top = _first_best(log_p, top_p) == _first_best(log_q, top_q)
    shared = top_p[:, :top_k, None] == top_q[:, None, :top_k]
    return same_top, shared.any(dim=-1).float().mean(dim=-1)


def _first_best(scores: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """The smallest id among the best tokens: of equals, greedy decoding takes the first."""
    values = scores.gather(1, top)
    return top.where(values == values[:, :1], scores.shape[1]).amin(dim=-1)


def _escapes(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Positions where q rules out a token that p does not, bool [positions]."""
    if not bool(log_q.amin().isneginf()):  # nearly always, and much cheaper than looking
        return torch.zeros(len(log_q), dtype=torch.bool, device=log_q.device)
    return (log_q.isneginf() & ~log_p.isneginf()).any(dim=-1)


def _spread(log_probs: torch.Tensor, portions: Sequence[float]) -> torch.Tensor:
    finite = log_probs.clamp_min(FLOOR)
    probabilities = finite.exp()  # [members, positions, vocab]
    weight = finite.new_tensor(portions).view(-1, 1, 1)
    mean = (weight * probabilities).sum(dim=0)
    log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    parts = finite.sub_(log_mean).mul_(probabilities).sum(dim=-1)  # [members, positions]
    return (weight.squeeze(-1) * parts).sum(dim=0).clamp_min(0)
