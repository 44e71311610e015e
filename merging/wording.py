"""Names in messages."""

from collections.abc import Iterable, Sequence


def shown(names: Sequence[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def grouped(problems: Iterable[tuple[str, str]]) -> list[str]:
    """One reason per problem, led by the names that have it; `problems` are (name, problem)."""
    names: dict[str, list[str]] = {}
    for name, problem in problems:
        names.setdefault(problem, []).append(name)
    return [f"{shown(names[problem])}: {problem}" for problem in names]


def malformed(error: Exception) -> str:
    """What is wrong with JSON that did not have the expected form, by the error of reading it."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, TypeError | AttributeError):
        return "a part of it is of another type than it has to be"
    return str(error)
