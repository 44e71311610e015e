"""A rule compiled for its members: what the engine calls on the rows of a group."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from ensemble import rules
from ensemble.catalog import RULES
from ensemble.errors import CombinedLogitsError, MemberLogitsError, RuleError

LARGEST = 1e30
"""Largest coefficient; beyond it float32 logits overflow."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with one coefficient per row: `rule(logits)` combines the rows of a group.

    `rows` names the rows in the order in which their logits are stacked, and `coefficients` has
    what each counts for; they sum to 1. In task arithmetic the first row is the base, whose
    coefficient is 1 minus the sum of the members'. `temperature` is the one that acts on the
    members before they are combined (1: none), and tokens less plausible than `plausibility_alpha`
    times the best are ruled out (0: none).
    """

    name: str
    rows: tuple[str, ...]
    coefficients: tuple[float, ...]
    temperature: float = 1.0
    plausibility_alpha: float = 0.0

    @property
    def needed(self) -> tuple[int, ...]:
        """Indices of the rows that count: those of a coefficient other than zero."""
        return tuple(index for index, c in enumerate(self.coefficients) if c != 0)

    def pruned(self) -> Self:
        """The same rule over the rows that it needs, and no others."""
        return self.of(tuple(self.rows[index] for index in self.needed))

    def of(self, rows: Sequence[str]) -> Self:
        """The same rule with its rows in this order; those left out must not be needed."""
        by_row = dict(zip(self.rows, self.coefficients, strict=True))
        coefficients = tuple(by_row.pop(row) for row in rows)
        assert not any(by_row.values()), by_row
        return dataclasses.replace(self, rows=tuple(rows), coefficients=coefficients)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Combine logits, float32 [rows, ..., vocab] -> [..., vocab].

        Raises MemberLogitsError if a row that counts is not finite, CombinedLogitsError if nothing
        finite comes of the combination. -inf for some tokens, not all, is a member's veto.
        """
        assert len(logits) == len(self.rows), (logits.shape, self.rows)
        self._check_members(logits)
        if self.name == "linear_pool":
            combined = rules.linear_pool(logits, self.coefficients, self.temperature)
        else:
            combined = rules.affine(logits, self.coefficients)
        if self.plausibility_alpha > 0:
            keep = rules.plausible(logits, self.coefficients, self.plausibility_alpha)
            combined = combined.masked_fill(~keep, -math.inf)
        self._check_combined(combined)
        return combined

    def _check_members(self, logits: torch.Tensor) -> None:
        finite = _has_finite_peaks(logits).flatten(1).all(dim=1).tolist()
        for index in self.needed:
            if not finite[index]:
                raise MemberLogitsError(index, self.rows[index])

    def _check_combined(self, combined: torch.Tensor) -> None:
        if not bool(_has_finite_peaks(combined).all()):
            terms = (f"{n}: {c:g}" for n, c in zip(self.rows, self.coefficients, strict=True))
            raise CombinedLogitsError(
                f"{self.name} with coefficients {{{', '.join(terms)}}} leaves no finite logits: "
                "they overflow, or every token is ruled out by some member"
            )


def _has_finite_peaks(logits: torch.Tensor) -> torch.Tensor:
    """Whether the largest logit is a number, bool [...,]; NaN anywhere makes it NaN."""
    return logits.amax(dim=-1, keepdim=True).isfinite()


def compile_rule(
    name: str,
    coefficients: Mapping[str, float],
    *,
    base: str = "base",
    temperature_order: str = "after",
    temperature: float = 1.0,
    plausibility_alpha: float = 0.0,
) -> Rule:
    """Compile a rule for members and their coefficients.

    `coefficients` holds lambdas for task_arithmetic and weights of any positive sum for the pools.
    A member called `base` counts as that row, whose own delta is zero. The order of members does
    not matter: rows are sorted by name, after the base. `temperature` is the request's, and used
    only with `temperature_order="before"`; the two orders differ in linear_pool alone.

    Raises RuleError with every reason why there is no such rule.
    """
    reasons = [
        *_coefficient_reasons(name, coefficients),
        *_option_reasons(name, temperature_order, temperature, plausibility_alpha),
    ]
    if reasons:
        raise RuleError(reasons)
    members = sorted(coefficients)
    if name == "task_arithmetic":
        members = [member for member in members if member != base]
        lambdas = [coefficients[member] for member in members]
        rows, values = (base, *members), (rules.base_coefficient(lambdas), *lambdas)
    else:
        rows, values = tuple(members), rules.shares([coefficients[member] for member in members])
    before = name == "linear_pool" and temperature_order == "before"
    return Rule(name, rows, values, temperature if before else 1.0, plausibility_alpha)


def _coefficient_reasons(name: str, coefficients: Mapping[str, float]) -> list[str]:
    if name not in RULES:
        return [f"there is no rule {name!r}; the rules are {', '.join(RULES)}"]
    if not coefficients:
        return ["an ensemble needs at least one member"]
    wrong = {member: c for member, c in coefficients.items() if not abs(c) <= LARGEST}
    if wrong:
        return [
            f"the coefficient of {member} must be a number between -{LARGEST:g} and {LARGEST:g}, "
            f"got {c}"
            for member, c in wrong.items()
        ]
    if name == "task_arithmetic":
        return []
    reasons = []
    if name == "linear_pool":
        below = [(member, c) for member, c in coefficients.items() if c < 0]
        reasons = [f"linear_pool takes no negative weights, got {c:g} for {m}" for m, c in below]
    try:
        rules.shares(list(coefficients.values()))
    except RuleError as error:
        reasons += error.reasons
    return reasons


def _option_reasons(name: str, order: str, temperature: float, alpha: float) -> list[str]:
    reasons = []
    if order not in ("after", "before"):
        reasons.append(f"temperature_order must be 'after' or 'before', got {order!r}")
    elif order == "before" and not (math.isfinite(temperature) and temperature > 0):
        reasons.append(
            f"temperature_order 'before' needs a temperature above 0, got {temperature:g}"
        )
    if not 0 <= alpha <= 1:
        reasons.append(f"plausibility_alpha must be in [0, 1], got {alpha:g}")
    elif alpha > 0 and name == "linear_pool":
        reasons.append("plausibility_alpha is for rules with negative weights, not linear_pool")
    return reasons
