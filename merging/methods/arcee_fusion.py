"""Arcee Fusion: take over the elements of the source that matter most."""

import numpy as np
import torch

from merging.methods.blocks import blocks_of
from merging.methods.method import method
from merging.methods.selection import Ranking

EPSILON = 1e-8
ALMOST_ALL = -1 + 2**-24
"""The float32 number above -1, from which on a loss of probability has no logarithm."""

BLOCK = 1 << 16
"""Elements whose divergence is computed at once."""


@method(
    "arcee_fusion",
    title="Arcee Fusion",
    paper="https://www.arcee.ai",
    kind="elementwise",
    max_sources=1,
)
def arcee_fusion(base: torch.Tensor, deltas: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Keep the delta's elements whose importance is at least `median + 1.5 * (q3 - q1)`.

    The importance of an element is `|tau|` times the divergence KL(softmax(x) || softmax(W0)) of
    its row. The quartiles are exact; mergekit estimates those of more than a million elements from
    a random million.
    """
    delta = deltas[0]
    importance = delta.abs().mul_(divergence(base, delta))
    threshold = np.float32(fusion_threshold(importance))
    merged = importance  # written over, block by block
    for change, part in zip(blocks_of(delta), blocks_of(merged), strict=True):
        np.multiply(change.numpy(), part.numpy() >= threshold, out=part.numpy())
    return merged


def divergence(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Of every row, float32 in the shape of `base` with a last dimension of 1.

    A sum of `p log(1 + x) - (p - q)`, where `x = (p - q) / q`: the differences sum to 0, and with
    them no term is much larger than the whole, however close p is to q. Float32 will do.
    """
    if base.ndim == 0:
        return torch.zeros_like(base)
    rows = base.reshape(-1, base.shape[-1])
    changes = delta.reshape(rows.shape)
    step = max(1, BLOCK // base.shape[-1])
    parts = []
    for old, change in zip(torch.split(rows, step), torch.split(changes, step), strict=True):
        q = torch.softmax(old, dim=-1).add_(EPSILON)
        p = torch.softmax(old + change, dim=-1).add_(EPSILON)
        difference = p - q
        x = torch.div(difference, q, out=q).clamp_(min=ALMOST_ALL)
        terms = x.log1p_().mul_(p).sub_(difference)
        parts.append(terms.sum(dim=-1).clamp_(min=0))
    return torch.cat(parts).reshape(*base.shape[:-1], 1)


def fusion_threshold(importance: torch.Tensor) -> float:
    """`median + 1.5 * (q3 - q1)`, where quantile q is the element of rank `int(q * (n - 1))`."""
    count = importance.numel()
    ranks = [count - int(q * (count - 1)) for q in (0.25, 0.5, 0.75)]  # from the largest, from 1
    ranking = Ranking(importance, *ranks)
    q1, median, q3 = (np.float32(ranking.kth(rank)) for rank in ranks)
    return float(median + np.float32(1.5) * (q3 - q1))
