"""What `mergeserve presets create` and `set` ask for: a document, or a patch of one."""

import argparse
import json
import math

from pydantic import JsonValue

from server.commands.http_client import CommandError

Fields = dict[str, JsonValue]


def read_change(arguments: argparse.Namespace) -> Fields:
    """The fields that are given, in the form of a merge patch. Raises CommandError."""
    sources: dict[str, Fields] = {}
    parameters: Fields = {}
    for text in arguments.weights:
        source, weight = parse_weight(text)
        sources.setdefault(source, {})["weight"] = weight
    for text in arguments.param:
        owner, name, value = parse_parameter(text)
        (sources.setdefault(owner, {}) if owner else parameters)[name] = value
    given: Fields = {"method": arguments.method, "mode": arguments.mode}
    change: Fields = {name: value for name, value in given.items() if value is not None}
    change |= {"sources": dict(sources)} if sources else {}
    change |= {"parameters": parameters} if parameters else {}
    if not change:
        raise CommandError("nothing is given: name SOURCE=WEIGHT, --method, --param or --mode")
    return change


def parse_weight(text: str) -> tuple[str, JsonValue]:
    """Read `SOURCE=WEIGHT`; numbers with commas between them are a gradient."""
    source, equals, weight = text.partition("=")
    try:
        numbers: list[JsonValue] = [_finite(part) for part in weight.split(",")]
    except ValueError:
        raise CommandError(f"{text!r} is not SOURCE=WEIGHT with a finite number") from None
    if not equals or not source:
        raise CommandError(f"{text!r} is not SOURCE=WEIGHT")
    return source, numbers[0] if len(numbers) == 1 else numbers


def parse_parameter(text: str) -> tuple[str, str, JsonValue]:
    """Read `[SOURCE.]NAME=VALUE`: numbers, true and false, JSON, else text."""
    path, equals, value = text.partition("=")
    owner, _, name = path.rpartition(".")
    if not equals or not name or not value:
        raise CommandError(f"--param {text}: is not NAME=VALUE, or SOURCE.NAME=VALUE of one source")
    return owner, name, _value(value)


def _value(text: str) -> JsonValue:
    try:
        numbers: list[JsonValue] = [_finite(part) for part in text.split(",")]
    except ValueError:
        try:
            value: JsonValue = json.loads(text)
        except ValueError:
            return text
        return value
    return numbers[0] if len(numbers) == 1 else numbers


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
