"""Questions about a small table, answered by one SQL query.

What is held out is whole tables: names, columns and values that training never saw.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

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


def generate_sql(held_out: bool, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Every question about the tables of one side of the split."""
    for line in (_HELD_OUT_TABLES if held_out else _TABLES).strip().splitlines():
        table = _Table.parse(line)
        columns = ", ".join([*table.texts, *table.numbers])
        for question, query in table.questions():
            yield f"Table: {table.name}({columns})\nQuestion: {question}", query


def score_sql(prompt: str, reference: str, output: str) -> float:
    """1 if the first SELECT statement in the output is the reference, up to space and case."""

    def normalise(text: str) -> str:
        statement = re.search(r"select\b[^;]*", text.lower())
        return " ".join(statement.group().split()) if statement else ""

    return float(normalise(output) == normalise(reference))
