"""The errors that ensemble raises for users' mistakes.

EnsembleError
├── RuleError            a rule, its coefficients or its options cannot be used
├── MemberLogitsError    one member's logits are not finite
├── CombinedLogitsError  finite members, but no distribution comes of them
├── StatisticsError      values that no comparison can be made of
└── ScorerError          a scorer cannot apply to a reference or to an answer
"""

from collections.abc import Sequence


class EnsembleError(Exception):
    """A user's mistake; `reasons` lists all of them, one sentence each."""

    def __init__(self, reasons: str | Sequence[str]) -> None:
        self.reasons = (reasons,) if isinstance(reasons, str) else tuple(reasons)
        super().__init__("; ".join(self.reasons))


class RuleError(EnsembleError):
    """A rule, its coefficients or its options cannot be used."""


class MemberLogitsError(EnsembleError):
    """A member that the rule uses gave NaN, +inf, or -inf for every token.

    `row` is its index in the logits that the rule was called with, `member` its name.
    """

    def __init__(self, row: int, member: str) -> None:
        super().__init__(
            f"member {row} ({member}) of the ensemble gave logits that are not finite: its "
            "weights overflow or hold NaN"
        )
        self.row = row
        self.member = member


class CombinedLogitsError(EnsembleError):
    """The members' logits are finite, but the combination leaves no distribution."""


class StatisticsError(EnsembleError):
    """Values that no comparison can be made of."""


class ScorerError(EnsembleError):
    """A scorer cannot apply to a reference or to an answer."""
