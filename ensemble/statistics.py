"""Statistics over prompts: intervals of means and differences, exact tests, retention.

The unit is the prompt: tokens of one text are not independent, so nothing here counts tokens as
evidence. Everything is deterministic, the bootstrap under its seed. Needs scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from ensemble.errors import StatisticsError

Array: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = Sequence[float] | Array

NUM_RESAMPLES = 2000

MAX_ELEMENTS = 2**21
"""Elements that the bootstrap draws at once, which bounds its memory."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval at `level`; a bound that is not known is infinite."""

    estimate: float
    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True, slots=True)
class McNemar:
    """Prompts that only one of two got right, and the two-sided exact p-value of no difference."""

    num_candidate_only: int
    num_reference_only: int
    p_value: float


def mean_interval(
    values: Values,
    *,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over prompts, with a bootstrap over prompts (Efron 1987; scipy.stats.bootstrap).

    The nominal level is raised as Hesterberg's expanded percentile interval has it (2015), since
    the plain bootstrap is too narrow by about the factor of Student's t and n / (n - 1). One prompt
    tells nothing of the spread: its bounds are infinite. Equal values have an interval of no width.
    """
    sample = _finite(values)
    estimate = math.fsum(sample) / len(sample)
    if len(sample) == 1:
        return Interval(estimate, -math.inf, math.inf, level, method)
    if np.ptp(sample) <= 1e-12 * abs(sample).max():
        return Interval(estimate, estimate, estimate, level, method)
    found = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, MAX_ELEMENTS // len(sample)),
        confidence_level=_expanded(level, len(sample)),
        method="BCa" if method == "bca" else "percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), level, method)


def difference_interval(
    candidate: Values, reference: Values, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean difference, candidate minus reference, of values paired by prompt.

    Right-or-wrong scores (all 0 or 1) get Tango's score interval, which is honest where few prompts
    differ and a bootstrap sees no spread; other values get the bootstrap.
    """
    first, second = paired(candidate, reference)
    if is_binary(first) and is_binary(second):
        return tango(first, second, level=level)
    return mean_interval(first - second, level=level, seed=seed)


def tango(candidate: Values, reference: Values, *, level: float = 0.95) -> Interval:
    """The score interval of a difference of paired proportions (Tango 1998).

    The differences that a test at `level` does not reject; with b prompts that only the candidate
    got right, c that only the reference did, and none of either, +-z² / (n + z²).
    """
    first, second = paired(candidate, reference)
    b, c, n = int((first > second).sum()), int((first < second).sum()), len(first)
    z = _normal((1 + level) / 2)

    def excess(delta: float) -> float:
        linear = (2 * n - b + c) * delta - b - c
        root = math.sqrt(max(linear**2 + 8 * n * c * delta * (1 - delta), 0.0))
        share = (root - linear) / (4 * n)  # of prompts that only the reference gets right
        return float((b - c - n * delta) ** 2 - z**2 * n * (2 * share + delta * (1 - delta)))

    estimate, step = (b - c) / n, 1e-9  # at the estimate itself the excess may be 0
    low = -1.0 if c == n else optimize.brentq(excess, -1, estimate - step)
    high = 1.0 if b == n else optimize.brentq(excess, estimate + step, 1)
    return Interval(estimate, float(low), float(high), level, "tango")


def mcnemar(candidate: Values, reference: Values) -> McNemar:
    """The exact McNemar test: a binomial test on the prompts that only one of two got right."""
    first, second = paired(candidate, reference)
    assert is_binary(first), "scores must be 0 or 1"
    assert is_binary(second), "scores must be 0 or 1"
    b, c = int((first > second).sum()), int((first < second).sum())
    p_value = float(stats.binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    return McNemar(b, c, p_value)


def wilson(num_right: int, num_prompts: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (1927)."""
    if num_prompts == 0:
        raise StatisticsError("a proportion needs at least one prompt")
    found = stats.binomtest(num_right, num_prompts).proportion_ci(level, method="wilson")
    return Interval(num_right / num_prompts, float(found.low), float(found.high), level, "wilson")


def retention(candidate: Values, specialist: Values, *, level: float = 0.95) -> Interval | None:
    """The candidate's mean score divided by the specialist's, paired by prompt; None if that is 0.

    Fieller's interval (1954): the ratios r for which a t test does not reject a mean of
    `candidate - r specialist` of 0. Infinite both ways where the specialist's mean could be 0.
    """
    first, second = paired(candidate, specialist)
    top, bottom, n = float(first.mean()), float(second.mean()), len(first)
    if bottom == 0:
        return None
    ratio = top / bottom
    if n == 1:
        return Interval(ratio, -math.inf, math.inf, level, "fieller")
    critical = float(stats.t.ppf((1 + level) / 2, n - 1)) ** 2 / n
    covariance = np.cov(first, second)  # [2, 2]
    a = bottom**2 - critical * covariance[1, 1]
    half = top * bottom - critical * covariance[0, 1]
    rest = top**2 - critical * covariance[0, 0]
    if a <= 0:
        return Interval(ratio, -math.inf, math.inf, level, "fieller")
    spread = math.sqrt(max(half**2 - a * rest, 0.0))
    return Interval(ratio, (half - spread) / a, (half + spread) / a, level, "fieller")


def clustered_error(values: Values, prompts: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """The standard error of a mean of values that come in clusters, such as positions of prompts.

    `sqrt(G / (G - 1) sum_g (sum_(i in g) (x_i - mean))²) / n` over G clusters (Liang and Zeger
    1986; for evaluations Miller, arXiv:2411.00640). With one value per cluster the
    usual `s / sqrt(n)`; infinite for a single cluster.
    """
    sample = _finite(values)
    _, clusters = np.unique(np.asarray(prompts), return_inverse=True)
    num_clusters = int(clusters.max()) + 1
    if num_clusters == 1:
        return math.inf
    sums = np.bincount(clusters, weights=sample - sample.mean())
    variance = num_clusters / (num_clusters - 1) * float(sums @ sums)
    return math.sqrt(variance) / len(sample)


def worst_prompts(candidate: Values, reference: Values, count: int = 10) -> tuple[int, ...]:
    """Indices of the prompts where the candidate loses most, worst first, none where it does not.

    Higher values are better.
    """
    first, second = paired(candidate, reference)
    differences = first - second
    order = np.argsort(differences, kind="stable")[:count]
    return tuple(int(index) for index in order if differences[index] < 0)


def paired(candidate: Values, reference: Values) -> tuple[Array, Array]:
    """Both as arrays [num_prompts]. Raises StatisticsError unless all values are finite."""
    first, second = _finite(candidate), _finite(reference)
    assert first.shape == second.shape, (first.shape, second.shape)
    return first, second


def is_binary(values: Array) -> bool:
    """Whether every value is 0 or 1: right or wrong."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def _finite(values: Values) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    assert sample.ndim == 1, sample.shape
    if not len(sample):
        raise StatisticsError("there are no values to compare")
    if wrong := np.flatnonzero(~np.isfinite(sample)).tolist():
        raise StatisticsError(f"the value at {wrong[0]} is {sample[wrong[0]]}, not a number")
    return sample


def _expanded(level: float, n: int) -> float:
    quantile = math.sqrt(n / (n - 1)) * float(stats.t.ppf((1 + level) / 2, n - 1))
    return min(1 - 2 * float(stats.norm.sf(quantile)), 1 - 1e-9)


def _normal(probability: float) -> float:
    return float(stats.norm.ppf(probability))
