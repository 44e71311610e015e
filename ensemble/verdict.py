"""The answer to the practitioner's question in one sentence: may I ship the candidate?"""

import math
from dataclasses import dataclass
from typing import Literal

from ensemble.errors import StatisticsError
from ensemble.non_inferiority import Conclusion, NonInferiority, non_inferiority
from ensemble.statistics import Array, Interval, McNemar, Values, is_binary, mcnemar, paired

Metric = Literal["score", "loss"]

Advice = Literal["ship", "keep", "weigh", "undecided"]

SAME_COST = 0.05
"""Costs that differ by less than this share are called the same."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, why in one sentence, and the numbers behind it.

    `advice`: "ship" the candidate, "keep" the reference, "weigh" a better candidate that costs
    more, or "undecided" for want of prompts. `difference` is the candidate's mean advantage, so
    better is positive, and `margin` the loss that was allowed: both as shares of 1 for scores, in
    nats for losses. `cost_ratio` is the reference's cost divided by the candidate's: above 1 the
    candidate is cheaper. `mcnemar` is None unless every score is right or wrong.
    """

    sentence: str
    advice: Advice
    conclusion: Conclusion
    metric: Metric
    candidate: str
    reference: str
    difference: Interval
    margin: float
    num_prompts: int
    num_needed: int | None
    cost_ratio: float | None
    mcnemar: McNemar | None


@dataclass(frozen=True, slots=True)
class _Unit:
    """How differences of a metric are written."""

    factor: float
    name: str
    digits: int

    def number(self, value: float) -> str:
        """Rounded; what rounds to zero has no sign."""
        return f"{round(value * self.factor, self.digits) + 0.0:.{self.digits}f}"

    def bound(self, value: float) -> str:
        """Rounded up: a bound that is rounded down would promise too much."""
        scale = 10.0**self.digits
        return self.number(math.ceil(value * self.factor * scale - 1e-6) / scale / self.factor)


_UNITS = {"score": _Unit(100.0, "points", 1), "loss": _Unit(1.0, "nats", 3)}


def verdict(
    candidate: Values,
    reference: Values,
    *,
    margin: float,
    metric: Metric = "score",
    names: tuple[str, str] = ("merge", "the ensemble"),
    cost_ratio: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """Judge a candidate against a reference by their values on the same prompts, in order.

    Scores lie in [0, 1] and higher is better; losses are mean nats per token and lower is better.
    `margin` is in the same unit. Raises StatisticsError for a value that is not finite, a score out
    of bounds, or a margin or cost ratio that is not above 0.
    """
    first, second = paired(candidate, reference)
    if metric == "score" and not (_are_shares(first) and _are_shares(second)):
        raise StatisticsError("scores must lie between 0 and 1")
    if cost_ratio is not None and not 0 < cost_ratio < math.inf:
        raise StatisticsError(f"the cost ratio must be above 0, got {cost_ratio:g}")
    sign = 1 if metric == "score" else -1
    found = non_inferiority(sign * first, sign * second, margin, level=level, seed=seed)
    advice = _advice(found, cost_ratio)
    binary = metric == "score" and is_binary(first) and is_binary(second)
    return Verdict(
        sentence=_sentence(found, advice, _UNITS[metric], names, cost_ratio),
        advice=advice,
        conclusion=found.conclusion,
        metric=metric,
        candidate=names[0],
        reference=names[1],
        difference=found.difference,
        margin=margin,
        num_prompts=found.num_prompts,
        num_needed=found.num_needed,
        cost_ratio=cost_ratio,
        mcnemar=mcnemar(first, second) if binary else None,
    )


def _are_shares(values: Array) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _advice(found: NonInferiority, cost_ratio: float | None) -> Advice:
    if found.conclusion == "undecided":
        return "undecided"
    if found.conclusion == "inferior":
        return "keep"
    if cost_ratio is None or cost_ratio >= 1 - SAME_COST:
        return "ship"
    return "weigh" if found.difference.low > 0 else "keep"


def _sentence(
    found: NonInferiority,
    advice: Advice,
    unit: _Unit,
    names: tuple[str, str],
    cost_ratio: float | None,
) -> str:
    if found.conclusion == "undecided":
        return _undecided(found, unit, names)
    finding = _finding(found.difference, found.conclusion, unit, names)
    closing = {"ship": "ship", "weigh": "weigh the gain against the cost", "keep": "do not ship"}
    if advice == "keep" and found.conclusion == "non_inferior":
        closing["keep"] = f"keep {names[1]}"
    return f"{finding}{_cost(cost_ratio)}: {closing[advice]}"


def _finding(
    difference: Interval, conclusion: Conclusion, unit: _Unit, names: tuple[str, str]
) -> str:
    candidate, reference = names
    low, high, level = difference.low, difference.high, f"({difference.level * 100:g} % CI)"
    if conclusion == "inferior":
        bounds = f"{unit.number(-high)} to {unit.number(-low)} {unit.name}"
        return f"{candidate} {bounds} worse than {reference} {level}"
    if low > 0:
        bounds = f"{unit.number(low)} to {unit.number(high)} {unit.name}"
        return f"{candidate} {bounds} better than {reference} {level}"
    return f"{candidate} within {unit.bound(-low)} {unit.name} of {reference} {level}"


def _undecided(found: NonInferiority, unit: _Unit, names: tuple[str, str]) -> str:
    difference = found.difference
    opening = "too close to the margin to call"
    if found.num_needed is not None:
        opening = f"not enough prompts: about {found.num_needed} needed"
    bounds = ""
    if math.isfinite(difference.low):
        low, high = unit.number(difference.low), unit.number(difference.high)
        bounds = f" ({difference.level * 100:g} % CI {low} to {high})"
    apart = unit.number(abs(difference.estimate))
    side = "better" if difference.estimate >= 0 else "worse"
    by = f"{apart} {unit.name} {side} than {names[1]}" if float(apart) else f"level with {names[1]}"
    margin = f"{unit.number(found.margin)} {unit.name}"
    return f"{opening}; on {found.num_prompts}, {names[0]} is {by}{bounds}, margin {margin}"


def _cost(cost_ratio: float | None) -> str:
    if cost_ratio is None:
        return ""
    if abs(cost_ratio - 1) <= SAME_COST:
        return ", at the same cost"
    if cost_ratio > 1:
        return f", {cost_ratio:.1f} \N{MULTIPLICATION SIGN} cheaper"
    return f", {1 / cost_ratio:.1f} \N{MULTIPLICATION SIGN} dearer"
