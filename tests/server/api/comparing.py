"""Comparisons over HTTP, as tests ask for them."""

import httpx

from tests.server.api.conftest import StartApp
from tests.server.api.reading import compares
from tests.server.api.scripted import (
    Harness,
)

PAIR = {"candidates": ["tutor", "base"]}


def says_yes(start: StartApp) -> Harness:
    """An application whose candidates answer yes, and the base no."""
    harness = start()
    harness.engine.script = compares({"base": "no"})
    return harness


def compare(api: Harness, **fields: object) -> httpx.Response:
    """POST /v1/compare, of two prompts unless the fields say otherwise."""
    body = {"prompts": ["one", "two"], **PAIR, **fields}
    return api.post("/v1/compare", {k: v for k, v in body.items() if v is not None})


def result(api: Harness, **fields: object) -> dict:
    response = compare(api, **fields)
    assert response.status_code == 200, response.text
    answer: dict = response.json()
    return answer


def refused(api: Harness, **fields: object) -> str:
    """The message of a request that is refused before anything runs."""
    before = len(api.engine.requests)
    response = compare(api, **fields)
    assert response.status_code == 400, response.text
    assert len(api.engine.requests) == before
    error = response.json()["error"]
    message: str = error["message"]
    assert error["param"] is None or error["param"].split("[")[0] in message
    return message


def two_sources(api: Harness, **fields: object) -> None:
    """Give the preset a second source, so that it has something to leave out."""
    changes = {"sources": {"code": {"weight": 0.5}}, **fields}
    response = api.request("PATCH", "/v1/presets/tutor", json=changes)
    assert response.status_code == 200, response.text
