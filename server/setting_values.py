"""What options are given as: on the command line, in the environment and in YAML."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, DirectoryPath
from pydantic_settings import NoDecode

from server.api.keys import ApiKey, parse_key
from server.presets.names import BASE, NAME_PATTERN
from server.presets.sampling_defaults import SamplingDefaults


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source to register at start-up: a folder, or a hub id where no such folder exists; and the
    source that it is an adapter on.
    """

    name: str
    location: str
    parent: str | None = None


PARENT = ",parent="


def parse_source(text: str) -> SourceSpec:
    """Read `NAME=DIR_OR_HUB_ID` or `NAME=DIR_OR_HUB_ID,parent=NAME`."""
    name, equals, rest = text.partition("=")
    location, comma, parent = rest.rpartition(PARENT) if PARENT in rest else (rest, "", "")
    if not equals or not location or (comma and not parent):
        raise ValueError(f"{text!r} is not NAME=DIR_OR_HUB_ID or NAME=DIR_OR_HUB_ID,parent=NAME")
    if re.fullmatch(NAME_PATTERN, name) is None or name == BASE:
        raise ValueError(
            f"{name!r} is not a source name: use 1 to 64 letters, digits, dots, underscores and "
            f"hyphens, the first one a letter or a digit, and not {BASE!r}"
        )
    return SourceSpec(name, location, parent or None)


def _sources(value: object) -> object:
    """The items of --source: in YAML a source may be a map of its `path` and `parent`; in the
    environment a parent follows its source after a comma, as sources follow each other.
    """
    if isinstance(value, str):
        return [item.strip() for item in re.split(r",(?!parent=)", value) if item.strip()]
    if isinstance(value, Mapping):
        return [f"{name}={_location(name, own)}" for name, own in value.items()]
    return value


def _location(name: object, own: object) -> object:
    if not isinstance(own, Mapping):
        return own
    unknown = own.keys() - {"path", "parent"}
    if unknown or "path" not in own:
        raise ValueError(f"source {name}: expected a folder, or a map of path and parent")
    return f"{own['path']}{PARENT}{own['parent']}" if own.get("parent") else own["path"]


def items(value: object) -> object:
    """What the command line, the environment (commas) and YAML (list or map) give, as one list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        return [f"{name}={location}" for name, location in value.items()]
    return value


def _each(
    parse: Callable[[str], object], split: Callable[[object], object] = items
) -> BeforeValidator:
    """Split a value into items and parse those that are text."""

    def convert(value: object) -> object:
        given = split(value)
        if not isinstance(given, list | tuple):
            return given
        if isinstance(value, str) and not given:
            # Keys from variables that were not set must not leave a server open.
            raise ValueError("there is nothing between the commas: leave it out")
        return tuple(parse(item) if isinstance(item, str) else item for item in given)

    return BeforeValidator(convert)


def _from_json(value: object) -> object:
    """Text on the command line and in the environment, a map in YAML."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("expected JSON, such as '{\"temperature\": 0}'") from None


def _yes_or_no(value: object) -> object:
    """YAML reads `yes` as true."""
    return ("no", "yes")[value] if isinstance(value, bool) else value


Keys = Annotated[tuple[ApiKey, ...], NoDecode, _each(parse_key)]
Sources = Annotated[tuple[SourceSpec, ...], NoDecode, _each(parse_source, _sources)]
Folders = Annotated[tuple[DirectoryPath, ...], NoDecode, _each(Path)]
Defaults = Annotated[SamplingDefaults, NoDecode, BeforeValidator(_from_json)]
YesNo = Annotated[Literal["yes", "no"], BeforeValidator(_yes_or_no)]
