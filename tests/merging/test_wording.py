"""Messages show a few names, and say how many they leave out."""

from merging.wording import grouped, shown


def test_a_few_names_are_all_shown() -> None:
    """Up to the limit nothing is left out."""
    assert shown(["a", "b"]) == "a, b"
    assert shown([]) == ""


def test_many_names_are_counted() -> None:
    """Beyond the limit the rest is a number."""
    assert shown(list("abcdef")) == "a, b, c, d and 2 more"


def test_names_with_one_problem_are_one_reason() -> None:
    """Problems are grouped in the order in which they were found."""
    problems = [("a", "odd"), ("b", "even"), ("c", "odd")]
    assert grouped(problems) == ["a, c: odd", "b: even"]
