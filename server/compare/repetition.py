"""Whether an answer says one thing over and over, as models do whose weights are ruined."""

from collections import Counter
from collections.abc import Sequence

MIN_TOKENS = 8
"""Shorter answers repeat nothing: `10 10 10` may be right."""

LONGEST_PERIOD = 4
REPEATED = 0.9
"""The share of tokens that a ruined answer repeats. Good small models loop as well, but after a
beginning of their own, and over whole sentences."""


def is_degenerate(token_ids: Sequence[int]) -> bool:
    """Whether one token is nearly the whole answer, or a few take turns from its beginning on."""
    if len(token_ids) < MIN_TOKENS:
        return False
    ((_, most),) = Counter(token_ids).most_common(1)
    if most >= REPEATED * len(token_ids):
        return True
    return any(_repeats(token_ids, period) for period in range(1, LONGEST_PERIOD + 1))


def _repeats(token_ids: Sequence[int], period: int) -> bool:
    pairs = list(zip(token_ids[period:], token_ids, strict=False))
    return sum(later == earlier for later, earlier in pairs) >= REPEATED * len(pairs)
