"""The demo adapters' data: deterministic, with held-out splits that are new, and fair scores."""

import json
import re
from random import Random

import pytest

from scripts.demo_data import Skill, make_skills
from scripts.demo_data.arithmetic import generate_arithmetic, in_words, score_arithmetic
from scripts.demo_data.fields import generate_json, score_json
from scripts.demo_data.sql import generate_sql, score_sql
from scripts.demo_data.styles import score_pirate, score_verbose, sentences
from scripts.demo_data.topics import split_topics

NAMES = ("sql", "json", "arithmetic", "pirate", "verbose")


@pytest.fixture(scope="module")
def skills() -> dict[str, Skill]:
    return make_skills()


def test_skills_are_these(skills: dict[str, Skill]) -> None:
    """The skills, by their own names, are the five that the demo adapters learn."""
    assert {skill.name: name for name, skill in skills.items()} == {name: name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_deterministic(skills: dict[str, Skill], name: str) -> None:
    """Equal arguments give equal examples, and another seed gives others."""
    again, other = make_skills()[name], make_skills(seed=1)[name]
    assert (again.train, again.held_out) == (skills[name].train, skills[name].held_out)
    assert other.train != skills[name].train


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint(skills: dict[str, Skill], name: str) -> None:
    """No prompt comes twice, in a split or across the two, and both splits are of a useful size."""
    train, held_out = skills[name].train, skills[name].held_out
    assert len({example.prompt for example in train + held_out}) == len(train + held_out)
    assert len(train) >= 200
    assert 40 <= len(held_out) <= 60


def test_held_out_tables_are_new() -> None:
    """sql holds out whole tables: no table of training is asked about."""

    def tables(held_out: bool) -> set[str]:
        return {prompt.split("(")[0] for prompt, _ in generate_sql(held_out, Random(0))}

    assert len(tables(True)) >= 3
    assert not tables(True) & tables(False)


def test_held_out_values_are_new() -> None:
    """json holds out values: no word that is an answer there is one in training."""

    def words(held_out: bool) -> set[str]:
        pairs = generate_json(held_out, Random(0))
        answers = [json.loads(next(pairs)[1]) for _ in range(2000)]
        return {value for answer in answers for value in answer.values() if isinstance(value, str)}

    assert len(words(True)) >= 20
    assert not words(True) & words(False)


def test_held_out_sums_are_new() -> None:
    """arithmetic holds out sums: one that is asked in any wording is trained on in none."""

    def sums(held_out: bool) -> set[str]:
        pairs = generate_arithmetic(held_out, Random(0))
        return {next(pairs)[1].split("=")[0] for _ in range(5000)}

    assert len(sums(True)) >= 100
    assert not sums(True) & sums(False)


def test_held_out_topics_are_new() -> None:
    """The styles hold out topics: neither a subject nor an answer is on both sides."""
    train, held_out = split_topics()
    assert not {topic.subject for topic in train} & {topic.subject for topic in held_out}
    assert not {topic.answer for topic in train} & {topic.answer for topic in held_out}
    assert {topic.kind for topic in held_out} == {"how", "why", "what"}


@pytest.mark.parametrize("name", NAMES)
def test_reference_scores_one(skills: dict[str, Skill], name: str) -> None:
    """Every reference answer, trained on or held out, has the full score."""
    skill = skills[name]
    for example in skill.train[:300] + skill.held_out:
        assert skill.score(example.prompt, example.answer, example.answer) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_other_answers_score_less(skills: dict[str, Skill], name: str) -> None:
    """Nothing at all, a plain sentence, and another skill's answer are no full score."""
    skill = skills[name]
    others = [skills[other].held_out[0].answer for other in NAMES if other != name]
    for example in skill.held_out:
        for output in ["", "I do not know.", *others]:
            assert skill.score(example.prompt, example.answer, output) < 1.0


def test_sums_are_right() -> None:
    """Every answer's sum holds, and ends with its result in words."""
    pairs = generate_arithmetic(False, Random(0))
    for _, answer in (next(pairs) for _ in range(500)):
        found = re.fullmatch(r"(\d+) ([+*-]) (\d+) = (\d+)\. The answer is ([a-z-]+)\.", answer)
        assert found is not None
        a, sign, b, result, words = found.groups()
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert (int(result), words) == (value, in_words(value))


@pytest.mark.parametrize(
    ("number", "words"), [(0, "zero"), (13, "thirteen"), (20, "twenty"), (99, "ninety-nine")]
)
def test_numbers_in_words(number: int, words: str) -> None:
    """Numbers up to 99 are spelled as in English."""
    assert in_words(number) == words


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("SELECT name FROM dogs WHERE age > 5;", 1),
        ("```sql\nselect  name\nfrom dogs where age > 5\n;\n```", 1),
        ("SELECT name FROM dogs WHERE age > 50;", 0),
        ("SELECT name FROM dogs;", 0),
    ],
)
def test_sql_score(output: str, score: float) -> None:
    """A query counts whatever its case, its spaces and the text around it, if it is right."""
    assert score_sql("", "SELECT name FROM dogs WHERE age > 5;", output) == score


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ('Here it is: {"age": 5, "name": "Rex"}', 1),
        ('{"name": "Rex", "age": "5"}', 0),
        ('{"name": "Rex"}', 0),
        ('{"name": "Rex", "age": 5', 0),
        ("{Rex}", 0),
    ],
)
def test_json_score(output: str, score: float) -> None:
    """An object counts whatever its order, if it parses and has just the values that were asked."""
    assert score_json("", '{"name": "Rex", "age": 5}', output) == score


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("12", 1),
        ("Seven and five make twelve.", 1),
        ("7 + 5 = 12, so he has 12 apples.", 1),
        ("12 is wrong, it is 13", 0),
        ("many", 0),
    ],
)
def test_arithmetic_score(output: str, score: float) -> None:
    """The last number of an answer counts, in digits or in words."""
    assert score_arithmetic("", "7 + 5 = 12. The answer is twelve.", output) == score


def test_pirate_score() -> None:
    """The share of sentences with a pirate's word; plain English, such as "before", has none."""
    assert score_pirate("", "", "Arr, matey! The sky be blue. Ye see it.") == pytest.approx(2 / 3)
    assert score_pirate("", "", "The year before, bring your own string and eat an hour.") == 0


def test_verbose_score() -> None:
    """Pleasantries are counted up to four; a plain answer has none."""
    assert score_verbose("", "", "Paris.") == 0
    assert score_verbose("", "", "What a great question! I hope this helps!") == 0.5


def test_sentences() -> None:
    """A text falls into sentences at its full stops, question marks and exclamation marks."""
    assert sentences(" Aye! It be so, 3.5 o' them. Savvy? ") == [
        "Aye!",
        "It be so, 3.5 o' them.",
        "Savvy?",
    ]
