"""`GET /`: the list of routes."""

from tests.server.api.conftest import StartApp
from tests.server.api.scripted import Harness


def test_others_get_json(api: Harness) -> None:
    """Whoever does not ask for HTML gets each route with its method and what it does."""
    answer = api.get("/").json()
    found = {(route["method"], route["path"]): route["summary"] for route in answer["data"]}
    assert found["POST", "/v1/chat/completions"] == "Answer a conversation."
    assert ("GET", "/v1/models/{model_id}") in found
    assert not [route for route in found if route[0] == "HEAD"]
    assert all(found.values())


def test_browsers_get_a_page(api: Harness) -> None:
    """A browser gets the same as a page, with the address for clients."""
    page = api.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<code>/v1/presets/{name}</code>" in page.text
    assert "/v1</code>" in page.text


def test_it_needs_no_key(start: StartApp) -> None:
    """The list of routes is open where everything else needs a key."""
    api = start(api_key=["secret"], admin_key=["boss"])
    assert api.get("/").status_code == 200
    assert api.get("/v1/models").status_code == 401
