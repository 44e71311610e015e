"""The trims: which elements of one delta are kept, and by how much the rest grows for it."""

import math

import torch

from merging.errors import PlanError
from merging.methods.random import Random
from merging.methods.selection import largest
from merging.methods.task_vectors import RescaleNorm, Scope, Semantics
from merging.methods.trim import Threshold, Trim, Trimmed

SMALL_NORM = 1e-7
"""Deltas with a smaller norm are not rescaled, as in mergekit."""

BLOCK = 256


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
    magnitudes = delta.abs()
    if threshold is not None:
        kept = magnitudes >= threshold[0]
    else:
        kept = largest(magnitudes, _count(delta.numel(), density))
        if semantics == "paper" and kept.any():
            kept = magnitudes >= magnitudes[kept].min()
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
    magnitudes = delta.abs()
    if threshold is not None:
        kept = (magnitudes >= threshold[1]) & (magnitudes < threshold[0])
    else:
        dropped, end = _band(delta.numel(), density, gamma)
        kept = largest(magnitudes, end) & ~largest(magnitudes, dropped)
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
    order = rows.argsort(dim=1, stable=True)
    length = rows.shape[1]
    steps = torch.linspace(-epsilon, epsilon, length) if length > 1 else torch.zeros(1)
    by_rank = (density + steps).reshape(1, -1, *[1] * (rows.ndim - 2)).expand(rows.shape)
    probability = torch.empty(rows.shape).scatter_(1, order, by_rank)
    kept = random.keep(probability.reshape(-1), delta.shape)
    return _rescaled(delta, kept, density, rescale, rescale_norm)


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
    before, after = (_norm(tensor, order) for tensor in (delta, delta * kept))
    small = before < SMALL_NORM or after < SMALL_NORM
    return Trimmed(kept, 1.0 if small else before / after)


def _norm(tensor: torch.Tensor, order: float) -> float:
    """A vector norm, summed in float32 over short blocks and in float64 over those."""
    if tensor.numel() == 0:
        return 0.0
    flat = tensor.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    norms = [
        torch.linalg.vector_norm(part, order, dim=1).double()
        for part in (flat[:whole].reshape(-1, BLOCK), flat[whole:].reshape(1, -1))
        if part.numel()
    ]
    return float(torch.linalg.vector_norm(torch.cat(norms), order))
