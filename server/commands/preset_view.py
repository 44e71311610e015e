"""How the command line shows presets."""

import json
from collections.abc import Sequence

from pydantic import JsonValue

from server.commands.presets_client import Document
from server.commands.table import table

WIDTH = 110
"""Tables are cut to it: `show` has the whole of what they shorten."""


def list_table(presets: Sequence[Document]) -> str:
    """A line for each preset."""
    rows = [
        [label(item), item["mode"], item["method"], weights(item), item["path"], item["state"]]
        for item in presets
    ]
    return table(["PRESET", "MODE", "METHOD", "WEIGHTS", "PATH", "STATE"], rows, width=WIDTH)


def history_table(revisions: Sequence[Document]) -> str:
    """A line for each revision."""
    rows = [
        [
            item["revision"],
            _moment(item["created_at"]),
            item["author"],
            weights(item),
            item["message"],
        ]
        for item in revisions
    ]
    return table(["REVISION", "CREATED", "AUTHOR", "WEIGHTS", "MESSAGE"], rows, width=WIDTH)


def card(document: Document) -> str:
    """One preset as lines of names and values."""
    lines: list[Sequence[object]] = [["preset", label(document)]]
    lines += [["method", document["method"]], ["weights", weights(document)]]
    if parameters := _parameters(document):
        lines.append(["parameters", parameters])
    fields = ["description", "mode", "digest", "state", "path", "author", "message", "updated_at"]
    lines += [[name, document[name]] for name in fields if document.get(name)]
    lines += [["warning", text] for text in _texts(document.get("warnings"))]
    lines += [["reason", text] for text in _texts(document.get("reasons"))]
    return table([], lines)


def label(document: Document) -> str:
    """NAME@REVISION."""
    return f"{document['name']}@{document['revision']}"


def weights(document: Document) -> str:
    """The sources with their weights, as `set` takes them where they can be written so."""
    sources = document["sources"]
    assert isinstance(sources, dict)
    return " ".join(
        f"{name}={_setting(source.get('weight') if isinstance(source, dict) else None)}"
        for name, source in sources.items()
    )


def _parameters(document: Document) -> str:
    """All parameters but the weights, as --param takes them."""
    sources, own = document["sources"], document.get("parameters")
    assert isinstance(sources, dict)
    found = [f"{name}={_setting(value)}" for name, value in _fields(own).items()]
    for source, settings in sources.items():
        found += [
            f"{source}.{name}={_setting(value)}"
            for name, value in _fields(settings).items()
            if name != "weight"
        ]
    return " ".join(found)


def _fields(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _setting(value: JsonValue) -> str:
    """A number, a gradient, or the value as JSON."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return ",".join(f"{item:g}" for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def _texts(value: JsonValue) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _moment(text: JsonValue) -> str:
    """To the second."""
    return str(text)[:19].replace("T", " ")
