"""Non-inferiority: may the candidate replace the reference, within a margin?

The candidate is not inferior if the whole interval of the difference lies above minus the margin,
and inferior if it all lies below; else the prompts decide nothing (Piaggio et al., JAMA 2012). At a
level of 95 % a candidate that is worse by the margin passes at most one time in forty.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ensemble.errors import StatisticsError
from ensemble.statistics import Array, Interval, Values, difference_interval, is_binary, paired

MIN_PROMPTS = 10
"""Fewer prompts decide nothing: a bootstrap of less is not worth its name."""

MAX_PROMPTS = 10**6
"""More than this is not a number of prompts that anybody could add."""

Conclusion = Literal["non_inferior", "inferior", "undecided"]


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """What was concluded, from the `difference` (better is positive) and `margin` in one unit.

    `num_needed` is about how many prompts would decide, None where that is settled or where no
    number of prompts in reach would.
    """

    conclusion: Conclusion
    difference: Interval
    margin: float
    num_prompts: int
    num_needed: int | None


def non_inferiority(
    candidate: Values,
    reference: Values,
    margin: float,
    *,
    level: float = 0.95,
    power: float = 0.8,
    seed: int = 0,
) -> NonInferiority:
    """Compare values paired by prompt, of which higher ones are better.

    Raises StatisticsError if the margin is not above 0 or a value is not finite.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise StatisticsError(f"the margin must be above 0, got {margin:g}")
    first, second = paired(candidate, reference)
    difference = difference_interval(first, second, level=level, seed=seed)
    conclusion: Conclusion = "undecided"
    if len(first) >= MIN_PROMPTS and difference.low > -margin:
        conclusion = "non_inferior"
    elif len(first) >= MIN_PROMPTS and difference.high < -margin:
        conclusion = "inferior"
    num_needed = None
    if conclusion == "undecided":
        num_needed = _num_needed(first, second, margin, level=level, power=power)
    return NonInferiority(conclusion, difference, margin, len(first), num_needed)


def prompts_needed(
    deviation: float, margin: float, *, level: float = 0.95, power: float = 0.8
) -> int:
    """Prompts with which a candidate that is in truth no worse is called so with probability
    `power`: `((z_level + z_power) deviation / margin)²`.

    `deviation` is the standard deviation of the paired differences; `margin` may also be the
    distance from the margin of a candidate whose difference is not 0.
    """
    quantiles = float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
    return max(MIN_PROMPTS, math.ceil((quantiles * deviation / margin) ** 2))


def _num_needed(
    first: Array, second: Array, margin: float, *, level: float, power: float
) -> int | None:
    """Planned for no true difference; for the observed one if there are that many already."""
    deviation = _deviation(first, second)
    needed = prompts_needed(deviation, margin, level=level, power=power)
    if needed <= len(first):
        distance = abs(float((first - second).mean()) + margin)
        if distance * MAX_PROMPTS**0.5 <= deviation:
            return None
        needed = prompts_needed(deviation, distance, level=level, power=power)
    return _rounded_up(needed) if len(first) < needed <= MAX_PROMPTS else None


def _deviation(first: Array, second: Array) -> float:
    """Of the differences; of right-or-wrong scores with half a prompt added to each outcome (as
    Agresti and Min 2005), so that a few prompts that all agree do not pass for certainty.
    """
    differences = first - second
    if is_binary(first) and is_binary(second):
        share = (float(np.abs(differences).sum()) + 1) / (len(differences) + 2)
        return math.sqrt(share)
    return float(differences.std(ddof=1)) if len(differences) > 1 else 0.0


def _rounded_up(number: int) -> int:
    """To two digits: it is an estimate."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
