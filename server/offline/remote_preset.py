"""A preset of a running server on this machine, to export."""

from collections.abc import Mapping
from pathlib import Path

import httpx
from pydantic import JsonValue

from merging.errors import PlanError
from server.engine.location import is_hub_id
from server.offline.found_preset import FoundPreset
from server.presets.document import parse_document

TIMEOUT_SECONDS = 60.0


def find_on_server(
    url: str, name: str, revision: int | None, key: str | None
) -> tuple[FoundPreset, str]:
    """Ask a server for a preset, and for the folders of its sources, which must be on this machine.

    Returns where the base is, too, as far as the server tells. Raises PlanError with what the
    server, or the connection, says.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
            query = {} if revision is None else {"revision": str(revision)}
            preset = _get(client, f"/v1/presets/{name}", query)
            sources = _get(client, "/v1/sources", {})["data"]
            models = _get(client, "/v1/models", {})["data"]
    except httpx.ConnectError as error:
        raise PlanError(
            f"no server answers at {url}: {error}; give its address with --url, or the base with "
            "--model to do without"
        ) from error
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
    return found, str(_maps(models)[0]["root"])


def base_location(url: str, root: str) -> str:
    """Where a server's base is, by the root of its card: a folder of this machine, or a hub id.

    Raises PlanError for a name alone, which is what a server tells those without its admin key.
    """
    if Path(root).is_absolute() or is_hub_id(root):
        return root
    raise PlanError(
        f"{url} does not say where its base {root!r} lies: give its --admin-key, or the base with "
        "--model"
    )


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
