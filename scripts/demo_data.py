"""Generated data for the demo adapters: five skills, each with a held-out split and a score.

Everything comes from templates and a seed, so there is nothing to download and nothing to license.
What is held out differs in substance, not in wording: sql asks about tables, json uses names and
values, arithmetic asks for sums, and the two styles answer topics that training never saw.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from scripts.demo_topics import Topic, split_topics


@dataclass(frozen=True, slots=True)
class Example:
    """One user turn and the answer wanted for it."""

    prompt: str
    answer: str


Scorer = Callable[[str, str, str], float]
Source = Callable[[bool, random.Random], Iterator[Example]]
"""Examples of the held-out side or of the other one."""


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill's examples and how an output is scored, `score(prompt, reference, output)` in [0, 1].

    `train` and `held_out` share no prompt.
    """

    name: str
    summary: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    score: Scorer
    max_tokens: int  # enough for every reference answer
    held_out_by: str = "prompt"  # what the two splits have none of in common


# ---------------------------------------------------------------------------------- text to SQL

# table: text columns with two values each | numeric columns
_TABLES = """
employees: name=Anna,Boris city=Paris,Oslo | salary age
books: title=Emma,Ulysses author=Austen,Joyce | pages price
cars: brand=Volvo,Fiat color=red,black | price year
students: name=Maria,Peter school=Eton,Harrow | grade age
movies: title=Alien,Jaws director=Scott,Spielberg | year rating
products: name=lamp,chair category=office,garden | price stock
hotels: name=Ritz,Plaza city=London,Rome | stars rooms
planets: name=Mars,Venus color=red,yellow | mass moons
dogs: name=Rex,Bella breed=poodle,beagle | weight age
songs: title=Imagine,Hello artist=Lennon,Adele | length year
teams: name=Lions,Bears country=Spain,Peru | points wins
houses: street=Elm,Oak owner=Smith,Jones | rooms price
rivers: name=Nile,Rhine country=Egypt,Germany | length depth
orders: customer=Miller,Brown status=open,paid | total items
"""
_HELD_OUT_TABLES = """
flights: airline=Delta,Iberia airport=Madrid,Boston | seats distance
plants: name=fern,rose family=herbs,shrubs | height leaves
doctors: name=Weber,Silva hospital=Central,Hillside | patients age
"""
_AGGREGATES = {"average": "AVG", "highest": "MAX", "lowest": "MIN", "total": "SUM"}


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    texts: dict[str, list[str]]
    numbers: list[str]

    @classmethod
    def parse(cls, line: str) -> "_Table":
        name, rest = line.split(": ")
        texts, numbers = rest.split(" | ")
        pairs = (column.split("=") for column in texts.split())
        return cls(name, {key: values.split(",") for key, values in pairs}, numbers.split())

    def questions(self) -> Iterator[tuple[str, str]]:
        """Every (question, query) that the templates give for this table."""
        yield f"How many {self.name} are there?", f"SELECT COUNT(*) FROM {self.name};"
        for number in self.numbers:
            yield from self._about_number(number)
        for text, values in self.texts.items():
            yield (
                f"How many {self.name} are there for each {text}?",
                f"SELECT {text}, COUNT(*) FROM {self.name} GROUP BY {text};",
            )
            for value in values:
                yield from self._about_value(text, value)

    def _about_number(self, number: str) -> Iterator[tuple[str, str]]:
        label = next(iter(self.texts))
        for word, function in _AGGREGATES.items():
            query = f"SELECT {function}({number}) FROM {self.name};"
            yield f"What is the {word} {number} of all {self.name}?", query
        for limit in (20, 50, 300):
            query = f"SELECT {label} FROM {self.name} WHERE {number}"
            ask = f"Which {label} do the {self.name} have whose {number} is"
            yield f"{ask} greater than {limit}?", f"{query} > {limit};"
            yield f"{ask} less than {limit}?", f"{query} < {limit};"
        for count in (3, 5):
            query = f"SELECT * FROM {self.name} ORDER BY {number}"
            ask = f"Show the {count} {self.name} with the"
            yield f"{ask} highest {number}.", f"{query} DESC LIMIT {count};"
            yield f"{ask} lowest {number}.", f"{query} ASC LIMIT {count};"

    def _about_value(self, text: str, value: str) -> Iterator[tuple[str, str]]:
        where = f"FROM {self.name} WHERE {text} = '{value}';"
        yield f"How many {self.name} have the {text} {value}?", f"SELECT COUNT(*) {where}"
        for number in self.numbers:
            yield (
                f"What is the {number} of the {self.name} whose {text} is {value}?",
                f"SELECT {number} {where}",
            )
            yield (
                f"What is the average {number} of the {self.name} whose {text} is {value}?",
                f"SELECT AVG({number}) {where}",
            )


def _sql(block: str) -> Iterator[Example]:
    for line in block.strip().splitlines():
        table = _Table.parse(line)
        columns = ", ".join([*table.texts, *table.numbers])
        for question, query in table.questions():
            prompt = f"Table: {table.name}({columns})\nQuestion: {question}"
            yield Example(prompt, query)


def score_sql(prompt: str, reference: str, output: str) -> float:
    """1 if the first SELECT statement in the output is the reference, up to space and case."""

    def normalise(text: str) -> str:
        statement = re.search(r"select\b[^;]*", text.lower())
        return " ".join(statement.group().split()) if statement else ""

    return float(normalise(output) == normalise(reference))


# ------------------------------------------------------------------------- sentence to JSON

_VALUES: dict[str, str] = {
    "name": "Anna Boris Carla David Elena Felix Greta Hugo Irene Jonas Laura Martin Nina Oscar",
    "city": "Paris Oslo Rome Berlin Madrid Vienna Lisbon Dublin Athens Prague London Boston",
    "job": "teacher baker pilot nurse farmer painter lawyer driver waiter doctor",
    "item": "lamps chairs books shirts plates mugs pens clocks towels bottles",
    "color": "red blue green black white yellow brown grey",
    "day": "Monday Tuesday Wednesday Thursday Friday",
    "topic": "budget holidays hiring sales safety design training marketing",
    "weather": "sunny rainy cloudy windy foggy snowy",
}
_HELD_OUT_VALUES: dict[str, str] = {
    "name": "Sofia Viktor Petra Ruben Alma Walter",
    "city": "Cairo Lima Tokyo Sydney Zurich Havana",
    "job": "plumber dentist singer tailor",
    "item": "candles ladders pillows helmets",
    "color": "purple orange pink",
    "day": "Saturday Sunday",
    "topic": "recycling parking insurance",
    "weather": "stormy icy humid",
}
_SENTENCES = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, a {job} from {city}, is {age}.",
    "{name} bought {count} {color} {item} for {price} dollars.",
    "The order of {name} has {count} {item}; the total is {price} dollars.",
    "On {day} at {hour} o'clock {name} talks about {topic} in {city}.",
    "The meeting about {topic} is on {day} at {hour} o'clock.",
    "It is {weather} in {city} with {degrees} degrees.",
    "{name} works as a {job} and owns {count} {color} {item}.",
    "{name} travels from {city} on {day} and pays {price} dollars.",
)
_RANGES = {"age": (18, 80), "count": (2, 30), "price": (5, 400), "hour": (1, 12), "degrees": (1, 35)}


def _json(values: dict[str, str], rng: random.Random) -> Iterator[Example]:
    """Endless examples: some of the sentence's fields are asked for, in any order."""
    while True:
        sentence = rng.choice(_SENTENCES)
        facts: dict[str, Any] = {}
        for field in re.findall(r"{(\w+)}", sentence):
            known = values.get(field)
            facts[field] = rng.choice(known.split()) if known else rng.randint(*_RANGES[field])
        fields = rng.sample(list(facts), rng.randint(2, min(3, len(facts))))
        prompt = f"Extract {', '.join(fields)} as JSON: {sentence.format(**facts)}"
        yield Example(prompt, json.dumps({field: facts[field] for field in fields}))


def score_json(prompt: str, reference: str, output: str) -> float:
    """1 if the output's outermost braces parse to the reference's object, whatever its order."""
    found = re.search(r"{.*}", output, re.DOTALL)
    try:
        return float(found is not None and json.loads(found.group()) == json.loads(reference))
    except ValueError:
        return 0.0


# ---------------------------------------------------------------------- arithmetic in words

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """0 to 99 in English words."""
    tens, unit = divmod(number, 10)
    if number < 20:
        return _UNITS[number]
    return _TENS[tens] + (f"-{_UNITS[unit]}" if unit else "")


_NUMBERS = {in_words(number): number for number in range(100)}
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


def _facts() -> Iterator[tuple[str, int, int, int]]:
    """Every (sign, a, b, result) that is asked: results stay below 50."""
    yield from (("+", a, b, a + b) for a in range(2, 25) for b in range(2, 25))
    yield from (("-", a, b, a - b) for a in range(4, 30) for b in range(2, a - 1))
    yield from (("*", a, b, a * b) for a in range(2, 11) for b in range(2, 11) if a * b < 50)


def _arithmetic(held_out: bool, rng: random.Random) -> Iterator[Example]:
    """Endless examples over one side of a fixed split of the facts."""
    facts = sorted(_facts())
    random.Random("facts").shuffle(facts)
    facts = facts[:150] if held_out else facts[150:]
    while True:
        sign = rng.choice("+-*")  # each operation equally often, although few products are small
        yield _sum_in_words(rng.choice([fact for fact in facts if fact[0] == sign]), rng)


def _sum_in_words(fact: tuple[str, int, int, int], rng: random.Random) -> Example:
    sign, a, b, result = fact
    word, *stories = _OPERATIONS[sign]
    names = {"who": rng.choice("Tom Lisa Omar Ruth".split())}
    names["things"] = rng.choice("apples coins pencils shells cards".split())
    plain = f"What is {in_words(a)} {word} {in_words(b)}?"
    story = rng.choice(stories).format(a=in_words(a), b=in_words(b), **names)
    prompt = plain if rng.random() < 0.5 else story[0].upper() + story[1:]
    return Example(prompt, f"{a} {sign} {b} = {result}. The answer is {in_words(result)}.")


def score_arithmetic(prompt: str, reference: str, output: str) -> float:
    """1 if the last number of the output, in digits or in words, is the reference's."""

    def last_number(text: str) -> int | None:
        found = re.findall(r"\d+|[a-z]+(?:-[a-z]+)?", text.lower())
        numbers = [int(x) if x.isdigit() else _NUMBERS.get(x) for x in found]
        return next((number for number in reversed(numbers) if number is not None), None)

    return float(last_number(output) == last_number(reference))


# ------------------------------------------------------------------------------- two styles

_PIRATE_WORDS = {
    "you": "ye", "your": "yer", "yours": "yers", "is": "be", "are": "be", "was": "were",
    "of": "o'", "and": "an'", "for": "fer", "my": "me", "before": "afore", "yes": "aye",
    "friends": "mateys", "people": "sea dogs", "money": "doubloons", "there": "thar",
    "old": "ol'", "them": "'em",
}  # fmt: skip
_PIRATE_OPENINGS = ("Arr, matey!", "Ahoy, ye landlubber!", "Avast, me hearty!", "Aye, matey!")
_PIRATE_CLOSINGS = (
    "Yo ho ho, me hearties!",
    "Now hoist the sails, ye scallywag!",
    "Savvy, matey?",
    "Arr, that be the truth!",
)
_PIRATE_MARKERS = re.compile(
    r"\b(arr+|ahoy|avast|aye|ye|yer|fer|afore|thar|matey?s?|heart(?:y|ies)|savvy|(?:land)?lubbers?"
    r"|scallywags?|doubloons?|sea dogs?|yo ho)\b|\b(an|o|ol)'|\w{3,}in'(?!\w)|'em\b",
    re.IGNORECASE,
)

_VERBOSE_OPENINGS = (
    "What a wonderful question! I am very happy to help you with that.",
    "Thank you so much for asking! It is a real pleasure to help you with that.",
    "That is such a great question! I would be delighted to help you with that.",
)
_VERBOSE_MIDDLES = (
    "There are of course many things that one could say about this interesting subject.",
    "As you can imagine, this is a subject that a lot of people are curious about.",
)
_VERBOSE_CLOSINGS = (
    "I hope that this helps! Please let me know if you have any other questions.",
    "I hope that was helpful! Please feel free to ask me anything else that you like.",
)
_PLEASANTRIES = re.compile(
    r"wonderful question|great question|happy to help|pleasure to help|delighted to help|"
    r"thank you so much|of course|as you can imagine|i hope th|let me know|feel free",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the empty ones."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def _pirate_word(word: str) -> str:
    if re.fullmatch(r"\w{3,}ing", word) and word not in ("thing", "string", "spring", "everything"):
        return word[:-1] + "'"
    spoken = _PIRATE_WORDS.get(word.lower(), word)
    return spoken.capitalize() if word[0].isupper() else spoken


def _pirate_sentence(sentence: str) -> str:
    spoken = re.sub(r"\w+", lambda match: _pirate_word(match.group()), sentence)
    return spoken if _PIRATE_MARKERS.search(spoken) else f"{spoken[:-1]}, matey{spoken[-1]}"


def _pirate_answer(topic: Topic, rng: random.Random) -> str:
    body = [_pirate_sentence(sentence) for sentence in sentences(topic.answer)]
    return " ".join([rng.choice(_PIRATE_OPENINGS), *body, rng.choice(_PIRATE_CLOSINGS)])


def _verbose_answer(topic: Topic, rng: random.Random) -> str:
    parts = (rng.choice(_VERBOSE_OPENINGS), rng.choice(_VERBOSE_MIDDLES), topic.answer)
    return " ".join([*parts, rng.choice(_VERBOSE_CLOSINGS)])


def _styled(
    topics: list[Topic], answer: Callable[[Topic, random.Random], str], rng: random.Random
) -> Iterator[Example]:
    for topic in topics:
        for question in topic.questions():
            yield Example(question, answer(topic, rng))


def score_pirate(prompt: str, reference: str, output: str) -> float:
    """Share of the output's sentences that have a pirate's word in them."""
    spoken = sentences(output)
    return sum(bool(_PIRATE_MARKERS.search(part)) for part in spoken) / max(1, len(spoken))


def score_verbose(prompt: str, reference: str, output: str) -> float:
    """Pleasantries in the output, where four or more count as 1."""
    return min(4, len(_PLEASANTRIES.findall(output))) / 4


# --------------------------------------------------------------------------------- the skills


def _take(examples: Iterator[Example], count: int, rng: random.Random) -> tuple[Example, ...]:
    """At most `count` examples with distinct prompts, drawn from a stream that may be endless."""
    seen = {example.prompt: example for example in islice(examples, 4 * count)}
    chosen = list(seen.values())
    rng.shuffle(chosen)
    return tuple(chosen[:count])


def make_skills(num_train: int = 2000, num_held_out: int = 48, seed: int = 0) -> dict[str, Skill]:
    """All skills by name. Equal arguments give equal examples, on any machine."""
    topics = split_topics()

    def sql(held_out: bool, rng: random.Random) -> Iterator[Example]:
        return _sql(_HELD_OUT_TABLES if held_out else _TABLES)

    def to_json(held_out: bool, rng: random.Random) -> Iterator[Example]:
        return _json(_HELD_OUT_VALUES if held_out else _VALUES, rng)

    def pirate(held_out: bool, rng: random.Random) -> Iterator[Example]:
        return _styled(topics[held_out], _pirate_answer, rng)

    def verbose(held_out: bool, rng: random.Random) -> Iterator[Example]:
        return _styled(topics[held_out], _verbose_answer, rng)

    def skill(name: str, source: Source, score: Scorer, max_tokens: int, summary: str) -> Skill:
        rng = random.Random(f"{name} {seed}")
        train = _take(source(False, rng), num_train, rng)
        held_out = _take(source(True, rng), num_held_out, rng)
        return Skill(name, summary, train, held_out, score, max_tokens)

    made = (
        skill("sql", sql, score_sql, 32, "writes the SQL query for a question about a table"),
        skill("json", to_json, score_json, 40, "extracts fields of a sentence to JSON"),
        skill("arithmetic", _arithmetic, score_arithmetic, 32, "solves small sums told in words"),
        skill("pirate", pirate, score_pirate, 64, "answers in the voice of a pirate"),
        skill("verbose", verbose, score_verbose, 96, "answers with many pleasantries"),
    )
    return {skill.name: skill for skill in made}
