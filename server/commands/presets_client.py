"""The preset routes of a running server, as the command line calls them."""

import json
from collections.abc import Mapping
from urllib.parse import quote

import httpx
from pydantic import JsonValue

from server.commands.http_client import CommandError, ServerError, error_message

TIMEOUT_SECONDS = 60.0

Document = Mapping[str, JsonValue]


class PresetsClient:
    """The preset routes of one server. Raises ServerError for what it refuses."""

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

    def explain(self, name: str, revision: str, *, interference: bool) -> Document:
        """What a preset resolves to. With `interference` this takes a pass over all tensors."""
        query = {"revision": revision} if revision else {}
        query |= {} if interference else {"interference": "false"}
        return self._send("GET", f"/{_segment(name)}/explain", query, timeout=None)

    def create(self, document: JsonValue, message: str | None) -> Document:
        """Create a preset."""
        return self._send("POST", "", _message(message), document)

    def patch(self, name: str, patch: JsonValue, message: str | None) -> Document:
        """Apply a merge patch."""
        return self._send("PATCH", f"/{_segment(name)}", _message(message), patch)

    def rollback(self, name: str, revision: int, message: str | None) -> Document:
        """Return to a revision."""
        path = f"/{_segment(name)}/rollback"
        return self._send("POST", path, _message(message), {"revision": revision})

    def delete(self, name: str, message: str | None) -> None:
        """Delete a preset."""
        self._send("DELETE", f"/{_segment(name)}", _message(message))

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonValue | None = None,
        timeout: float | None = TIMEOUT_SECONDS,
    ) -> Document:
        content = None if body is None else json.dumps(body)
        try:
            response = self._client.request(
                method,
                f"/v1/presets{path}",
                params=query,
                content=content,
                headers={"Content-Type": "application/json"} if content else {},
                timeout=timeout,
            )
            answer = response.json() if response.content else {}
        except httpx.HTTPError as error:
            raise CommandError(f"{self._client.base_url}: {error or repr(error)}") from error
        except ValueError as error:
            raise CommandError(f"{self._client.base_url} is not a mergeserve server") from error
        if response.is_error:
            raise ServerError(error_message(answer, response.status_code), response.status_code)
        document: Document = answer
        return document


def _items(answer: Document) -> list[Document]:
    data = answer.get("data")
    if not isinstance(data, list):
        raise CommandError("the server's answer is not a list")
    return [item for item in data if isinstance(item, dict)]


def _segment(name: str) -> str:
    return quote(name, safe="")


def _message(message: str | None) -> dict[str, str]:
    return {} if message is None else {"message": message}
