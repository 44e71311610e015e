"""YAML bodies: plain JSON values only, and no more of them than the text is worth."""

from itertools import islice

import yaml
from pydantic import JsonValue

from server.errors import InvalidRequestError

YAML = ("application/yaml", "application/x-yaml", "text/yaml")
MAX_VALUES = 100_000
"""Aliases let a short text stand for any number of values."""


def parse_yaml(body: bytes) -> JsonValue:
    """The value of a YAML document; InvalidRequestError if it is none, or not plain JSON."""
    try:
        documents = list(islice(yaml.safe_load_all(body.decode()), 2))
        value = documents[0] if documents else None
        _check(value)
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _invalid(" ".join(str(error).split())) from error
    if len(documents) > 1:
        raise _invalid(
            "it holds several documents, and one configuration makes one preset: send each by "
            "itself; what a later stage is made of has to be merged with `mergeserve merge` first, "
            "and registered as a source"
        )
    plain: JsonValue = value
    return plain


def to_yaml(value: JsonValue) -> str:
    """The value as YAML, in its own order."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text


def _check(value: object) -> None:
    """Raises ValueError for what JSON has not, and for too many values."""
    pending, num_values = [value], 0
    while pending:
        item = pending.pop()
        num_values += 1
        if num_values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values, aliases counted")
        if isinstance(item, dict):
            bad = next((key for key in item if not isinstance(key, str)), None)
            if bad is not None:
                raise ValueError(f"the key {bad!r} is not a string: put it in quotes")
            pending += item.values()
        elif isinstance(item, list):
            pending += item
        elif not (item is None or isinstance(item, str | int | float)):
            raise ValueError(f"{item!r} is a {type(item).__name__}: put it in quotes")


def _invalid(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"invalid YAML: {what}", code="invalid_yaml")
