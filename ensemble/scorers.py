"""Scorers: is an answer right, given a reference? Each gives 1.0 or 0.0.

References are checked before anything is generated; answers come from models, so no answer is an
error, but for a pattern that takes too long on it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import regex

from ensemble.errors import ScorerError

MAX_PATTERN_LEN = 1000
"""Characters of a regular expression."""

REGEX_TIMEOUT = 0.2
"""Seconds for one search; patterns such as `(a+)+b` would take centuries."""

NUMBER = re.compile(
    r"(?:(?<![\w)\].])[-\N{MINUS SIGN}+])?[$€£]?"
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
    r"(?:[eE]([-+]?[0-9]{1,3}))?"
)
"""A number as people write it: sign, currency, thousands, decimals, exponent."""

FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Scorer:
    """A way to score answers. `check` raises ScorerError if it cannot apply to a reference; `score`
    takes an answer and a reference that was checked.
    """

    name: str
    description: str
    check: Callable[[str], object]
    score: Callable[[str, str], float]


def check_references(scorer: Scorer, references: Sequence[str]) -> None:
    """Raise ScorerError with a reason for every reference that the scorer cannot apply to."""
    reasons: list[str] = []
    for index, reference in enumerate(references):
        try:
            scorer.check(reference)
        except ScorerError as error:
            reasons += (f"references[{index}]: {reason}" for reason in error.reasons)
    if reasons:
        raise ScorerError(reasons)


def find_scorer(name: str) -> Scorer:
    """The scorer of this name; ScorerError if there is none."""
    if name not in SCORERS:
        raise ScorerError(f"there is no scorer {name!r}; the scorers are {', '.join(SCORERS)}")
    return SCORERS[name]


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exact, so that 42, 42.0 and $42 are equal; None if it has none."""
    matches = list(NUMBER.finditer(text))
    if not matches:
        return None
    found = matches[-1]
    sign = "-" if found[0][0] in "-\N{MINUS SIGN}" else ""
    return Decimal(f"{sign}{found[1].replace(',', '')}e{found[2] or 0}")


def _check_text(reference: str) -> None:
    if not reference.strip():
        raise ScorerError("the reference is empty, and every answer contains that")


def _check_number(reference: str) -> None:
    if last_number(reference) is None:
        raise ScorerError(f"the reference {_shown(reference)} has no number")


def _score_number(answer: str, reference: str) -> float:
    return float(last_number(answer) == last_number(reference))


def _compile(pattern: str) -> regex.Pattern[str]:
    if len(pattern) > MAX_PATTERN_LEN:
        raise ScorerError(
            f"the pattern has {len(pattern)} characters, of {MAX_PATTERN_LEN} allowed"
        )
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise ScorerError(f"{_shown(pattern)} is not a regular expression: {error}") from None


def _score_regex(answer: str, reference: str) -> float:
    try:
        # concurrent: other threads run meanwhile
        found = _compile(reference).search(answer, timeout=REGEX_TIMEOUT, concurrent=True)
    except TimeoutError:
        raise ScorerError(
            f"the pattern {_shown(reference)} took more than {REGEX_TIMEOUT} s on an answer"
        ) from None
    return float(found is not None)


def _check_json(reference: str) -> None:
    try:
        _parse_json(reference)
    except (ValueError, RecursionError) as error:
        raise ScorerError(f"the reference {_shown(reference)} is not JSON: {error}") from None


def _score_json(answer: str, reference: str) -> float:
    """One fenced block is unwrapped; the order of keys and the spelling of numbers are free."""
    fenced = FENCE.fullmatch(answer.strip())
    try:
        found = _parse_json(fenced[1] if fenced else answer)
        return float(_equal(found, _parse_json(reference)))
    except (ValueError, RecursionError):
        return 0.0


def _parse_json(text: str) -> object:
    return json.loads(text, parse_float=Decimal, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _equal(left: object, right: object) -> bool:
    """Equal JSON values; in Python True == 1, in JSON not."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


_ALL = (
    Scorer(
        "exact",
        "The answer is the reference, but for white space around it.",
        lambda reference: None,
        lambda answer, reference: float(answer.strip() == reference.strip()),
    ),
    Scorer(
        "contains",
        "The reference, without white space around it, is somewhere in the answer.",
        _check_text,
        lambda answer, reference: float(reference.strip() in answer),
    ),
    Scorer(
        "regex",
        "The reference is a regular expression that matches somewhere in the answer.",
        _compile,
        _score_regex,
    ),
    Scorer(
        "number",
        "The last number in the answer equals the last number in the reference.",
        _check_number,
        _score_number,
    ),
    Scorer(
        "json",
        "The answer, which may be one fenced block, is JSON that equals the reference.",
        _check_json,
        _score_json,
    ),
)

SCORERS: Mapping[str, Scorer] = {scorer.name: scorer for scorer in _ALL}
"""The scorers by name, in the order in which they are shown."""
