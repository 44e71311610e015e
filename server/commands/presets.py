"""`mergeserve presets`: presets for people at a shell, over HTTP."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

import httpx
from pydantic import JsonValue

from server.commands.http_client import CommandError, authorization, error_message
from server.commands.table import table

TIMEOUT_SECONDS = 60.0

Document = Mapping[str, JsonValue]


class PresetsClient:
    """The preset routes of one server."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def all(self) -> list[Document]:
        """Every preset."""
        return _items(self._send("GET", ""))

    def get(self, name: str, revision: str) -> Document:
        """One preset, or one of its revisions."""
        return self._send("GET", f"/{_segment(name)}", {"revision": revision} if revision else {})

    def history(self, name: str) -> list[Document]:
        """The kept revisions of a preset."""
        return _items(self._send("GET", f"/{_segment(name)}/revisions"))

    def patch(self, name: str, patch: JsonValue, message: str | None) -> Document:
        """Apply a merge patch."""
        return self._send("PATCH", f"/{_segment(name)}", _message(message), patch)

    def rollback(self, name: str, revision: int, message: str | None) -> Document:
        """Return to a revision."""
        path = f"/{_segment(name)}/rollback"
        return self._send("POST", path, _message(message), {"revision": revision})

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonValue | None = None,
    ) -> Document:
        content = None if body is None else json.dumps(body)
        try:
            response = self._client.request(
                method,
                f"/v1/presets{path}",
                params=query,
                content=content,
                headers={"Content-Type": "application/json"} if content else {},
            )
            answer = response.json()
        except httpx.HTTPError as error:
            raise CommandError(f"{self._client.base_url}: {error or repr(error)}") from error
        except ValueError as error:
            raise CommandError(f"{self._client.base_url} is not a mergeserve server") from error
        if response.is_error:
            raise CommandError(error_message(answer, response.status_code))
        document: Document = answer
        return document


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; an error is one line and exit code 1."""
    actions: Mapping[str, Callable[[PresetsClient, argparse.Namespace], str]] = {
        "list": _list,
        "show": _show,
        "set": _set,
        "history": _history,
        "rollback": _rollback,
    }
    headers = authorization(arguments)
    try:
        with httpx.Client(
            base_url=arguments.url, headers=headers, timeout=TIMEOUT_SECONDS
        ) as client:
            print(actions[arguments.action](PresetsClient(client), arguments))
    except (CommandError, httpx.InvalidURL) as error:
        print(f"mergeserve presets: {error}", file=sys.stderr)
        return 1
    return 0


def _list(client: PresetsClient, arguments: argparse.Namespace) -> str:
    rows = [
        [_label(item), item["mode"], item["method"], _weights(item), item["path"], item["state"]]
        for item in client.all()
    ]
    return table(["PRESET", "MODE", "METHOD", "WEIGHTS", "PATH", "STATE"], rows)


def _show(client: PresetsClient, arguments: argparse.Namespace) -> str:
    name, _, revision = arguments.name.partition("@")
    return _card(client.get(name, revision))


def _set(client: PresetsClient, arguments: argparse.Namespace) -> str:
    sources: dict[str, JsonValue] = {
        source: {"weight": weight} for source, weight in map(parse_weight, arguments.weights)
    }
    return _card(client.patch(arguments.name, {"sources": sources}, arguments.message))


def _history(client: PresetsClient, arguments: argparse.Namespace) -> str:
    rows = [
        [item["revision"], item["created_at"], item["author"], _weights(item), item["message"]]
        for item in client.history(arguments.name)
    ]
    return table(["REVISION", "CREATED", "AUTHOR", "WEIGHTS", "MESSAGE"], rows)


def _rollback(client: PresetsClient, arguments: argparse.Namespace) -> str:
    return _card(client.rollback(arguments.name, arguments.revision, arguments.message))


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


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _card(document: Document) -> str:
    """One preset as lines of names and values."""
    fields = ["mode", "method", "digest", "state", "path", "author", "message", "updated_at"]
    lines: list[Sequence[object]] = [["preset", _label(document)], ["weights", _weights(document)]]
    if document.get("description"):
        lines.append(["description", document["description"]])
    lines += [[name, document[name]] for name in fields if document[name]]
    warnings = document.get("warnings")
    lines += [["warning", text] for text in (warnings if isinstance(warnings, list) else [])]
    return table([], lines)


def _label(document: Document) -> str:
    return f"{document['name']}@{document['revision']}"


def _weights(document: Document) -> str:
    sources = document["sources"]
    assert isinstance(sources, dict)
    return " ".join(f"{name}={_weight(source)}" for name, source in sources.items())


def _weight(source: JsonValue) -> str:
    """A weight as `set` takes it, where it can be written so."""
    weight = source.get("weight") if isinstance(source, dict) else None
    if isinstance(weight, int | float):
        return f"{weight:g}"
    if isinstance(weight, list) and all(isinstance(item, int | float) for item in weight):
        return ",".join(f"{item:g}" for item in weight)
    return json.dumps(weight)


def _items(answer: Document) -> list[Document]:
    data = answer.get("data")
    if not isinstance(data, list):
        raise CommandError("the server's answer is not a list")
    return [item for item in data if isinstance(item, dict)]


def _segment(name: str) -> str:
    return quote(name, safe="")


def _message(message: str | None) -> dict[str, str]:
    return {} if message is None else {"message": message}
