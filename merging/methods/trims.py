"""The trims: which elements of one delta are kept, and by how much the rest grows for it."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from merging.errors import PlanError
from merging.methods.blocks import BLOCK, blocks_of
from merging.methods.masks import at_least, masked
from merging.methods.random import Random
from merging.methods.selection import Ranking
from merging.methods.task_vectors import RescaleNorm, Scope, Semantics
from merging.methods.trim import Threshold, Trim, Trimmed

SMALL_NORM = 1e-7
"""Deltas with a smaller norm are not rescaled, as in mergekit."""

ROW = 256
"""Elements that are summed in float32."""


def _by_magnitude(
    delta: torch.Tensor,
    *,
    random: Random,
    threshold: Threshold | None,
    density: float,
    semantics: Semantics,
    scope: Scope,
    rescale: bool,
    rescale_norm: RescaleNorm,
) -> Trimmed:
    """TIES (2306.01708, Algorithm 1): keep the `int(density * n)` largest magnitudes, at least one.

    Of equal ones the first in memory are kept, under semantics paper or over a whole model all.
    """
    if density >= 1:
        return _everything(delta)
    if threshold is not None:
        kept = at_least(delta.abs(), threshold[0])
    else:
        count = _count(delta.numel(), density)
        ranking = Ranking(delta, count)
        with_equal = semantics == "paper"
        kept = at_least(delta.abs(), ranking.kth(count)) if with_equal else ranking.largest(count)
    return _rescaled(delta, kept, density, rescale, rescale_norm)


def _count_by_magnitude(size: int, density: float, scope: Scope) -> tuple[int, ...]:
    return (_count(size, density),) if scope == "model" and density < 1 else ()


def _count(size: int, density: float) -> int:
    return min(size, max(1, int(density * size))) if density > 0 else 0


def _without_outliers(
    delta: torch.Tensor,
    *,
    random: Random,
    threshold: Threshold | None,
    density: float,
    gamma: float,
    scope: Scope,
    rescale: bool,
    rescale_norm: RescaleNorm,
) -> Trimmed:
    """Model Breadcrumbs (2312.06795): drop the `int(gamma * n)` largest magnitudes, and
    then the smallest until `int(density * n)` are left.

    Where both cannot be had, fewer large ones are dropped, as in mergekit 0.1.5. A density of 1
    keeps everything.
    """
    if density >= 1:
        return _everything(delta)
    if threshold is not None:
        magnitudes = delta.abs()
        kept = at_least(magnitudes, threshold[1]) & ~at_least(magnitudes, threshold[0])
    else:
        dropped, end = _band(delta.numel(), density, gamma)
        ranking = Ranking(delta, dropped, end)
        kept = ranking.largest(end) & ~ranking.largest(dropped)
    return _rescaled(delta, kept, density, rescale, rescale_norm)


def _count_without_outliers(
    size: int, density: float, gamma: float, scope: Scope
) -> tuple[int, ...]:
    return _band(size, density, gamma) if scope == "model" and density < 1 else ()


def _band(size: int, density: float, gamma: float) -> tuple[int, int]:
    """Of elements from the largest down: how many are dropped, and the end of those kept."""
    kept = int(density * size)
    dropped = min(int(gamma * size), size - kept)
    return dropped, dropped + kept


def _at_random(
    delta: torch.Tensor,
    *,
    random: Random,
    threshold: Threshold | None,
    density: float,
    semantics: Semantics,
    rescale: bool,
    rescale_norm: RescaleNorm,
) -> Trimmed:
    """DARE (2311.03099): keep each element with probability `density`."""
    if density >= 1:
        return _everything(delta)
    kept = random.keep(density, delta.shape)
    norm = "inv_density" if rescale_norm == "auto" and semantics != "mergekit" else rescale_norm
    return _rescaled(delta, kept, density, rescale, norm)


def _by_rank(
    delta: torch.Tensor,
    *,
    random: Random,
    threshold: Threshold | None,
    density: float,
    epsilon: float,
    rescale: bool,
    rescale_norm: RescaleNorm,
) -> Trimmed:
    """MagPrune of DELLA (2406.11617): keep each element with a probability that grows
    with the rank of its magnitude in its row, evenly from density - epsilon to density + epsilon.

    A tensor of fewer than two dimensions is one row; a row of one element keeps it with
    probability `density`. `rescale` makes up for a whole tensor's loss, as in mergekit; the paper
    divides each element by its probability.
    """
    if density >= 1:
        return _everything(delta)
    if density <= 0:
        return Trimmed(torch.zeros(delta.shape, dtype=torch.bool))
    rows = delta.abs() if delta.ndim >= 2 else delta.abs().reshape(1, -1)
    last = rows.movedim(1, -1)  # what a rank is of: [..., length of a row]
    kept = _kept_by_rank(last.reshape(-1, last.shape[-1]), density, epsilon, random)
    kept = kept.reshape(last.shape).movedim(-1, 1).reshape(delta.shape).contiguous()
    return _rescaled(delta, kept, density, rescale, rescale_norm)


def _kept_by_rank(
    rows: torch.Tensor, density: float, epsilon: float, random: Random
) -> torch.Tensor:
    """The mask of `by_rank` for magnitudes [rows, length]."""
    num_rows, length = rows.shape
    steps = np.linspace(-epsilon, epsilon, length) if length > 1 else np.zeros(1)
    by_rank = random.keep(torch.from_numpy(density + steps), rows.shape)
    kept = torch.empty(rows.shape, dtype=torch.bool)
    height = max(1, BLOCK // max(length, 1))
    for start in range(0, num_rows, height):
        part = slice(start, start + height)
        kept[part].scatter_(1, _order(rows[part]), by_rank[part])
    return kept


def _order(rows: torch.Tensor) -> torch.Tensor:
    """Where each row's elements are from the smallest on, of equal ones the first first: int64.

    Sorts whole numbers with the place in their lower halves, which takes a third of the time that
    sorting places does. Magnitudes sort like their bits.
    """
    keys = rows.contiguous().numpy().view(np.int32).astype(np.int64)
    keys <<= 32
    keys |= np.arange(rows.shape[1])
    keys.sort(axis=1)
    keys &= (1 << 32) - 1
    return torch.from_numpy(keys)


def check_epsilon(density: tuple[float, ...], epsilon: tuple[float, ...]) -> None:
    """Raise PlanError if a probability of `by_rank` would not be one."""
    reasons = [
        f"density {d:g} with epsilon {e:g}: keep probabilities run from density - epsilon to "
        f"density + epsilon, which must lie between 0 and 1; take an epsilon below "
        f"{min(d, 1 - d):g}, or a density of 0 or 1"
        for d, e in zip(density, epsilon, strict=True)
        if 0 < d < 1 and (d + e >= 1 or d - e <= 0)
    ]
    if reasons:
        raise PlanError(reasons)


by_magnitude = Trim(_by_magnitude, _count_by_magnitude)
without_outliers = Trim(_without_outliers, _count_without_outliers)
at_random = Trim(_at_random)
by_rank = Trim(_by_rank)


def _everything(delta: torch.Tensor) -> Trimmed:
    return Trimmed(torch.ones(delta.shape, dtype=torch.bool))


def _rescaled(
    delta: torch.Tensor, kept: torch.Tensor, density: float, rescale: bool, norm: RescaleNorm
) -> Trimmed:
    if not rescale:
        return Trimmed(kept)
    if norm == "inv_density":
        return Trimmed(kept, 1 / density if density > 0 else 1.0)
    order = {"auto": 1.0, "l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]
    before, after = _norm(_magnitudes(delta), order), _norm(_magnitudes(delta, kept), order)
    small = before < SMALL_NORM or after < SMALL_NORM
    return Trimmed(kept, 1.0 if small else before / after)


def _magnitudes(delta: torch.Tensor, kept: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Those of all elements, or of those that are kept and 0 elsewhere; flat, block by block."""
    if kept is None:
        yield from (block.abs() for block in blocks_of(delta))
    else:
        pairs = zip(blocks_of(delta), blocks_of(kept), strict=True)
        yield from (masked(*pair).abs_() for pair in pairs)


def _norm(magnitudes: Iterator[torch.Tensor], order: float) -> float:
    """A vector norm of blocks."""
    if order == 1:
        return math.fsum(_sum(block) for block in magnitudes)
    if order == 2:
        return math.sqrt(math.fsum(_sum(block.square_()) for block in magnitudes))
    return max((float(block.max()) for block in magnitudes if block.numel()), default=0.0)


def _sum(values: torch.Tensor) -> float:
    """In float32 over short rows, and in float64 over those."""
    whole = values.numel() // ROW * ROW
    rows, rest = values[:whole].view(-1, ROW), values[whole:]
    return float(rows.sum(dim=1).sum(dtype=torch.float64)) + float(rest.sum())
