"""A skill that an adapter learns: its examples, what is held out, and how an answer is scored."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from scripts.demo_data.arithmetic import generate_arithmetic, score_arithmetic
from scripts.demo_data.fields import generate_json, score_json
from scripts.demo_data.sql import generate_sql, score_sql
from scripts.demo_data.styles import (
    generate_pirate,
    generate_verbose,
    score_pirate,
    score_verbose,
)

Generator = Callable[[bool, random.Random], Iterator[tuple[str, str]]]
"""Gives the (prompt, answer) pairs of the held-out side or of the other one; may be endless."""
Scorer = Callable[[str, str, str], float]
"""`score(prompt, reference, output)` in [0, 1], and 1 for the reference itself."""


@dataclass(frozen=True, slots=True)
class Example:
    """One user turn and the answer wanted for it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Skill:
    """What one adapter is trained for. `train` and `held_out` share none of `held_out_by`."""

    name: str
    summary: str  # continues "an adapter that"
    scored_by: str
    held_out_by: str
    max_tokens: int  # enough for every reference answer
    score: Scorer
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    generate: Generator
    score: Scorer
    max_tokens: int
    summary: str
    scored_by: str
    held_out_by: str


_TASKS = {
    "sql": _Task(
        generate_sql,
        score_sql,
        32,
        "writes the SQL query for a question about a table",
        "exact match of the query",
        "table",
    ),
    "json": _Task(
        generate_json,
        score_json,
        40,
        "extracts fields of a sentence to JSON",
        "equality of the parsed JSON",
        "name, city, job, item, colour, day, topic or kind of weather",
    ),
    "arithmetic": _Task(
        generate_arithmetic,
        score_arithmetic,
        32,
        "solves small sums that are told in words",
        "the right number at the end",
        "sum",
    ),
    "pirate": _Task(
        generate_pirate,
        score_pirate,
        64,
        "answers in the voice of a pirate",
        "share of sentences with a pirate's word",
        "topic",
    ),
    "verbose": _Task(
        generate_verbose,
        score_verbose,
        96,
        "answers with many pleasantries",
        "pleasantries in an answer, of four",
        "topic",
    ),
}


def make_skills(num_train: int = 2000, num_held_out: int = 48, seed: int = 0) -> dict[str, Skill]:
    """All skills by name, with at most so many examples. Equal arguments give equal examples."""
    return {name: _make(name, task, num_train, num_held_out, seed) for name, task in _TASKS.items()}


def _make(name: str, task: _Task, num_train: int, num_held_out: int, seed: int) -> Skill:
    rng = random.Random(f"{name} {seed}")
    train = _take(task.generate(False, rng), num_train, rng)
    return Skill(
        name=name,
        summary=task.summary,
        scored_by=task.scored_by,
        held_out_by=task.held_out_by,
        max_tokens=task.max_tokens,
        score=task.score,
        train=train,
        held_out=_take(task.generate(True, rng), num_held_out, rng),
    )


def _take(pairs: Iterator[tuple[str, str]], count: int, rng: random.Random) -> tuple[Example, ...]:
    """At most `count` examples with distinct prompts, shuffled."""
    seen = {prompt: Example(prompt, answer) for prompt, answer in islice(pairs, 4 * count)}
    return tuple(rng.sample(list(seen.values()), min(count, len(seen))))
