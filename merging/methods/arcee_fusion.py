"""Arcee Fusion: take over the elements of the source that matter most."""

import numpy as np
import torch

from merging.methods.masks import at_least, masked
from merging.methods.method import method
from merging.methods.selection import Ranking

EPSILON = 1e-8
BLOCK = 1 << 16
"""Elements whose divergence is computed at once, in float64."""


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
    importance = delta.abs() * _divergence(base, delta)
    return masked(delta, at_least(importance, fusion_threshold(importance)))


def _divergence(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Of every row, float32 in the shape of `base` with a last dimension of 1."""
    if base.ndim == 0:
        return torch.zeros_like(base)
    rows = base.reshape(-1, base.shape[-1])
    changes = delta.reshape(rows.shape)
    step = max(1, BLOCK // base.shape[-1])
    parts = []
    for old, change in zip(torch.split(rows, step), torch.split(changes, step), strict=True):
        q = torch.softmax(old.double(), dim=-1).add_(EPSILON)
        p = torch.softmax(old.double().add_(change), dim=-1).add_(EPSILON)
        parts.append((p * (p / q).log_()).sum(dim=-1).float())
    return torch.cat(parts).reshape(*base.shape[:-1], 1)


def fusion_threshold(importance: torch.Tensor) -> float:
    """`median + 1.5 * (q3 - q1)`, where quantile q is the element of rank `int(q * (n - 1))`."""
    ranking, count = Ranking(importance), importance.numel()
    ranks = [int(q * (count - 1)) for q in (0.25, 0.5, 0.75)]  # from the smallest, from 0
    q1, median, q3 = (np.float32(ranking.kth(count - rank)) for rank in ranks)
    return float(median + np.float32(1.5) * (q3 - q1))
