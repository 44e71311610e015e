"""A preset of a running server on this machine, to export."""

from collections.abc import Mapping
from pathlib import Path

import httpx
from pydantic import JsonValue

from merging.errors import PlanError
from server.offline.found_preset import FoundPreset
from server.presets.document import parse_document

TIMEOUT_SECONDS = 60.0


def find_on_server(
    url: str, name: str, revision: int | None, key: str | None
) -> tuple[FoundPreset, str]:
    """Ask a server for a preset, and for the folders of its sources, which must be on this machine.

    Returns the base's id too. Raises PlanError with what the server, or the connection, says.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
            query = {} if revision is None else {"revision": str(revision)}
            preset = _get(client, f"/v1/presets/{name}", query)
            sources = _get(client, "/v1/sources", {})["data"]
            models = _get(client, "/v1/models", {})["data"]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PlanError(f"{url}: {error or repr(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{url} is not a mergeserve server") from error
    cards = {str(card["name"]): card for card in _maps(sources)}
    document = parse_document(preset)
    found = FoundPreset(
        document=document,
        label=f"{name}@{preset['revision']}",
        folders={source: Path(str(card["path"])) for source, card in cards.items()},
        digest=str(preset["digest"]),
        parents={name: str(own) for name, card in cards.items() if (own := card.get("parent"))},
    )
    return found, str(_maps(models)[0]["id"])


def _get(client: httpx.Client, path: str, query: Mapping[str, str]) -> dict[str, JsonValue]:
    response = client.get(path, params=query)
    answer = response.json()
    if not isinstance(answer, dict):
        raise TypeError(answer)
    error = answer.get("error")
    if isinstance(error, dict):
        raise PlanError(f"{client.base_url}: {error.get('message')}")
    return answer


def _maps(items: JsonValue) -> list[dict[str, JsonValue]]:
    if not isinstance(items, list):
        raise TypeError(items)
    return [item for item in items if isinstance(item, dict)]
