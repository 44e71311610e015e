"""Scorers judge answers as people would, and refuse references that they cannot judge by."""

import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from ensemble.errors import ScorerError
from ensemble.scorers import SCORERS, check_references, find_scorer, last_number


def score(name: str, answer: str, reference: str) -> float:
    scorer = find_scorer(name)
    scorer.check(reference)
    return scorer.score(answer, reference)


def reason(name: str, reference: str) -> str:
    with pytest.raises(ScorerError) as error:
        find_scorer(name).check(reference)
    (only,) = error.value.reasons
    return only


def test_the_scorers_are_listed() -> None:
    """By the names that a comparison takes, each with a description."""
    assert list(SCORERS) == ["exact", "contains", "regex", "number", "json"]
    assert all(scorer.description.endswith(".") for scorer in SCORERS.values())


def test_an_unknown_scorer_is_named() -> None:
    """With those that there are."""
    with pytest.raises(ScorerError, match="no scorer 'bleu'; the scorers are exact, contains, reg"):
        find_scorer("bleu")


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Paris", "Paris", 1.0),
        ("  Paris\n", "Paris ", 1.0),
        ("paris", "Paris", 0.0),
        ("Paris.", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("", "", 1.0),
        ("new  york", "new york", 0.0),
    ],
)
def test_exact(answer: str, reference: str, expected: float) -> None:
    """White space around the text does not count, everything else does."""
    assert score("exact", answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("It is Paris, of course.", "Paris", 1.0),
        ("It is Paris.", " Paris\n", 1.0),
        ("It is paris.", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("a.b", "a.b", 1.0),
        ("axb", "a.b", 0.0),
    ],
)
def test_contains(answer: str, reference: str, expected: float) -> None:
    """The reference is plain text, not a pattern, and its case counts."""
    assert score("contains", answer, reference) == expected


@pytest.mark.parametrize("reference", ["", "  \n"])
def test_everything_contains_nothing(reference: str) -> None:
    """An empty reference would call every answer right."""
    assert reason("contains", reference).startswith("the reference is empty")


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The answer is 42.", r"\b42\b", 1.0),
        ("The answer is 421.", r"\b42\b", 0.0),
        ("PARIS", "(?i)paris", 1.0),
        ("yes\nno", "^no$", 0.0),
        ("yes\nno", "(?m)^no$", 1.0),
        ("", "^$", 1.0),
    ],
)
def test_regex(answer: str, reference: str, expected: float) -> None:
    """The pattern may match anywhere, with Python's flags."""
    assert score("regex", answer, reference) == expected


@pytest.mark.parametrize("pattern", ["(", "[a", "a{2,1}", "(?P<x>a)(?P=y)", "*a", "(" * 900])
def test_a_bad_pattern_is_refused(pattern: str) -> None:
    """Before anything is generated, with what is wrong about it."""
    assert "is not a regular expression: " in reason("regex", pattern)


def test_a_long_pattern_is_refused() -> None:
    """Its length is bounded."""
    assert reason("regex", "a" * 1001) == "the pattern has 1001 characters, of 1000 allowed"
    find_scorer("regex").check("a" * 1000)


def test_a_pattern_that_backtracks_for_ever_is_stopped() -> None:
    """A search has a fifth of a second, then it is an error that names the pattern."""
    start = time.perf_counter()
    with pytest.raises(ScorerError, match=r"'\(x\+x\+\)\+y' took more than 0.2 s on an answer"):
        score("regex", "x" * 50_000, "(x+x+)+y")
    assert time.perf_counter() - start < 5


def test_other_threads_run_while_a_pattern_is_searched() -> None:
    """A pattern that takes its fifth of a second stops nobody's stream meanwhile."""
    with ThreadPoolExecutor(1) as executor:
        search = executor.submit(score, "regex", "x" * 50_000, "(x+x+)+y")
        num_turns = 0
        while not search.done():
            time.sleep(0.001)
            num_turns += 1
    assert num_turns > 10
    assert search.exception() is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 3 apples and 4 pears, so 7.", "7"),
        ("#### 1,234", "1234"),
        ("It costs $18.50", "18.50"),
        ("It costs -$5", "-5"),
        ("minus: \N{MINUS SIGN}12", "-12"),
        ("x = -3.5e-2", "-0.035"),
        ("10-7", "7"),
        ("f(2)-1", "1"),
        ("COVID-19", "19"),
        ("+8", "8"),
        (".5", "0.5"),
        ("version 1.2.3", "3"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("1,234,567.89 in all", "1234567.89"),
        ("50%", "50"),
        ("007", "7"),
        ("2 or 3?", "3"),
        ("1e3", "1000"),
    ],
)
def test_the_last_number_of_a_text(text: str, expected: str) -> None:
    """Signs, currencies, thousands, decimals and exponents are read as people write them."""
    assert last_number(text) == Decimal(expected)


@pytest.mark.parametrize("text", ["", "none", "five", "-", "...", "\N{ARABIC-INDIC DIGIT FIVE}"])
def test_a_text_without_a_number(text: str) -> None:
    """Words are not numbers."""
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("3 + 4 = 7", "7", 1.0),
        ("so 7.0", "#### 7", 1.0),
        ("$1,000", "1000", 1.0),
        ("7 apples, 8 pears", "7", 0.0),
        ("no idea", "7", 0.0),
        ("0.30000000000000001", "0.3", 0.0),
        ("-0", "0", 1.0),
    ],
)
def test_number(answer: str, reference: str, expected: float) -> None:
    """The last numbers are compared by exact value, not by spelling."""
    assert score("number", answer, reference) == expected


def test_a_reference_without_a_number_is_refused() -> None:
    """There is nothing to compare with."""
    assert reason("number", "seven") == "the reference 'seven' has no number"


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ('{"a": 1, "b": [2, 3]}', '{"b":[2,3],"a":1}', 1.0),
        ('{"a": 1.0}', '{"a": 1}', 1.0),
        ("1e2", "100", 1.0),
        ("0.1", "0.10", 1.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ("[1]", "[1, 1]", 0.0),
        ('{"a": 1}', '{"a": 1, "b": null}', 0.0),
        ("true", "1", 0.0),
        ("[false]", "[0]", 0.0),
        ('"1"', "1", 0.0),
        ("null", "null", 1.0),
        ("null", "false", 0.0),
        ("{}", "[]", 0.0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1.0),
        ("```\n[1]\n```\n", "[1]", 1.0),
        ('Here: {"a": 1}', '{"a": 1}', 0.0),
        ("NaN", "1", 0.0),
        ("", "1", 0.0),
        ("[" * 100_000, "[]", 0.0),
        ("1" * 5000, "1", 0.0),
    ],
)
def test_json(answer: str, reference: str, expected: float) -> None:
    """Values are compared as JSON: key order and spelling are free, booleans are not numbers."""
    assert score("json", answer, reference) == expected


@pytest.mark.parametrize("reference", ["", "{", "{'a': 1}", "NaN", "[1,]", "Infinity"])
def test_a_reference_that_is_not_json_is_refused(reference: str) -> None:
    """With what the parser says of it."""
    assert " is not JSON: " in reason("json", reference)


def test_all_bad_references_are_told_by_number() -> None:
    """Every one that the scorer cannot apply to, not only the first."""
    with pytest.raises(ScorerError) as error:
        check_references(find_scorer("number"), ["1", "none", "2", ""])
    assert error.value.reasons == (
        "references[1]: the reference 'none' has no number",
        "references[3]: the reference '' has no number",
    )
    check_references(find_scorer("number"), ["1", "2"])


def test_a_long_reference_is_shortened_in_messages() -> None:
    """A message stays readable."""
    assert len(reason("number", "x" * 1000)) < 120
