"""Routes of sources."""

import pytest

from tests.server.api.scripted import Harness
from tests.server.presets.tiny import CLOSED_POLICY, World


def test_list_and_card(api: Harness) -> None:
    """Sources are listed in OpenAI's shape, and each has a card."""
    assert [card["name"] for card in api.get("/v1/sources").json()["data"]] == ["code", "math"]
    assert api.get("/v1/sources/math").json()["digest"].startswith("sha256:")
    assert api.get("/v1/sources/nobody").status_code == 404


def test_register(api: Harness, world: World) -> None:
    """POST registers a folder inside a source folder, which can be called at once."""
    world.adapter("sql", 7)
    response = api.post("/v1/sources", {"name": "sql", "path": "sql"})
    assert response.status_code == 201
    assert response.headers["Location"] == "/v1/sources/sql"
    assert api.complete(model="sql").status_code == 200


def test_name_that_is_taken(api: Harness) -> None:
    """One name is one thing."""
    assert api.post("/v1/sources", {"name": "tutor", "path": "math"}).status_code == 409


def test_replace(api: Harness, world: World) -> None:
    """PUT gives a name new content, and every preset that uses it a new revision."""
    world.adapter("better", 8)
    before = api.get("/v1/sources/math").json()["digest"]
    response = api.request("PUT", "/v1/sources/math", json={"path": "better"})
    assert response.status_code == 200, response.text
    assert response.json()["digest"] != before
    assert response.json()["new_revisions"] == [{"name": "tutor", "revision": 2}]
    assert api.complete(model="tutor").headers["X-Mergeserve-Preset"] == "tutor@2"


def test_rename(api: Harness) -> None:
    """A source cannot be renamed by PUT."""
    response = api.request("PUT", "/v1/sources/math", json={"name": "maths", "path": "math"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "name")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_conditions(api: Harness, method: str) -> None:
    """Sources have no revisions, so a condition is refused instead of ignored."""
    body = {"json": {"path": "math"}} if method == "PUT" else {}
    response = api.request(method, "/v1/sources/math", headers={"If-Match": '"1"'}, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "If-Match")


def test_delete(api: Harness) -> None:
    """A source that a preset uses is not deleted; another one is."""
    in_use = api.request("DELETE", "/v1/sources/math")
    assert in_use.status_code == 409
    assert "tutor" in in_use.json()["error"]["message"]
    assert api.request("DELETE", "/v1/sources/code").status_code == 204
    assert api.get("/v1/sources/code").status_code == 404


def test_closed_policy(start) -> None:
    """What the operator does not allow is 403 with the setting's name."""
    api = start(policy=CLOSED_POLICY)
    refused = {
        "--serve-sources": api.complete(model="math"),
        "--overrides": api.complete(model="tutor", mergeserve={"weights": {"math": 1.0}}),
        "--inline-recipes": api.complete(mergeserve={"recipe": {"sources": {}}}),
    }
    for setting, response in refused.items():
        assert response.status_code == 403
        assert setting in response.json()["error"]["message"]


def test_methods(api: Harness) -> None:
    """Every method is listed with its parameters, defaults, bounds and paper."""
    methods = {item["name"]: item for item in api.get("/v1/methods").json()["data"]}
    assert {"linear", "task_arithmetic"} <= methods.keys()
    assert methods["linear"]["paper"].startswith("https://")
    assert methods["linear"]["parameters"]
