"""Sentences, and some of their fields as JSON in the order that was asked for.

What is held out is values: the names, cities, jobs and so on of its sentences are in no training.
"""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

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
_RANGES = {
    "age": (18, 80),
    "count": (2, 30),
    "price": (5, 400),
    "hour": (1, 12),
    "degrees": (1, 35),
}


def generate_json(held_out: bool, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless examples: two or three fields of a sentence, in any order."""
    values = _HELD_OUT_VALUES if held_out else _VALUES
    while True:
        sentence = rng.choice(_SENTENCES)
        facts: dict[str, Any] = {}
        for field in re.findall(r"{(\w+)}", sentence):
            known = values.get(field)
            facts[field] = rng.choice(known.split()) if known else rng.randint(*_RANGES[field])
        fields = rng.sample(list(facts), rng.randint(2, min(3, len(facts))))
        prompt = f"Extract {', '.join(fields)} as JSON: {sentence.format(**facts)}"
        yield prompt, json.dumps({field: facts[field] for field in fields})


def score_json(prompt: str, reference: str, output: str) -> float:
    """1 if the output's outermost braces parse to the reference's object, whatever its order."""
    found = re.search(r"{.*}", output, re.DOTALL)
    try:
        return float(found is not None and json.loads(found.group()) == json.loads(reference))
    except ValueError:
        return 0.0
