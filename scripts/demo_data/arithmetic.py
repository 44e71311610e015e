"""Small sums, plain or as a little story, told in words and answered with the sum and in words.

What is held out is sums: "7 + 5" is either trained on, in any wording, or asked, in any wording.
"""

import random
import re
from collections.abc import Iterator

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen"""
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """0 to 99 in English words."""
    tens, unit = divmod(number, 10)
    if number < 20:
        return _SMALL.split()[number]
    return _TENS[tens] + (f"-{in_words(unit)}" if unit else "")


_NUMBERS = {in_words(number): number for number in range(100)}
_PEOPLE = ("Tom", "Lisa", "Omar", "Ruth")
_THINGS = ("apples", "coins", "pencils", "shells", "cards")
NUM_HELD_OUT = 150  # sums that are asked in no training
# sign: (operator in words, two little stories)
_OPERATIONS: dict[str, tuple[str, str, str]] = {
    "+": (
        "plus",
        "{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?",
        "There are {a} {things} on the table and {b} in the box. How many {things} are there?",
    ),
    "-": (
        "minus",
        "{who} has {a} {things} and gives away {b}. How many {things} are left?",
        "There were {a} {things} in the shop and {b} were sold. How many {things} are left?",
    ),
    "*": (
        "times",
        "{who} has {a} boxes with {b} {things} each. How many {things} are there?",
        "{b} {things} fit on one shelf. How many {things} fit on {a} shelves?",
    ),
}


def _sums() -> Iterator[tuple[str, int, int, int]]:
    """Every (sign, a, b, result) that is asked: results stay below 50."""
    yield from (("+", a, b, a + b) for a in range(2, 25) for b in range(2, 25))
    yield from (("-", a, b, a - b) for a in range(4, 30) for b in range(2, a - 1))
    yield from (("*", a, b, a * b) for a in range(2, 11) for b in range(2, 11) if a * b < 50)


def generate_arithmetic(held_out: bool, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless examples over the sums of one side of a fixed split, each operation equally often."""
    sums = sorted(_sums())
    random.Random("split").shuffle(sums)
    sums = sums[:NUM_HELD_OUT] if held_out else sums[NUM_HELD_OUT:]
    by_sign = [[one for one in sums if one[0] == sign] for sign in _OPERATIONS]
    while True:
        yield _ask(rng.choice(rng.choice(by_sign)), rng)


def _ask(one: tuple[str, int, int, int], rng: random.Random) -> tuple[str, str]:
    sign, a, b, result = one
    word, *stories = _OPERATIONS[sign]
    names = {"who": rng.choice(_PEOPLE), "things": rng.choice(_THINGS)}
    plain = f"What is {in_words(a)} {word} {in_words(b)}?"
    story = rng.choice(stories).format(a=in_words(a), b=in_words(b), **names)
    prompt = plain if rng.random() < 0.5 else story[0].upper() + story[1:]
    return prompt, f"{a} {sign} {b} = {result}. The answer is {in_words(result)}."


def score_arithmetic(prompt: str, reference: str, output: str) -> float:
    """1 if the last number of the output, in digits or in words, is the reference's."""

    def last_number(text: str) -> int | None:
        found = re.findall(r"\d+|[a-z]+(?:-[a-z]+)?", text.lower())
        numbers = [int(x) if x.isdigit() else _NUMBERS.get(x) for x in found]
        return next((number for number in reversed(numbers) if number is not None), None)

    return float(last_number(output) == last_number(reference))
