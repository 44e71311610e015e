"""Routes of presets: statuses, entity tags, conditions, asynchronous edits."""

import pytest

from tests.server.api.scripted import Harness
from tests.server.presets.tiny import preset

MATH = {"sources": {"math": {"weight": 0.8}}}


def patch(api: Harness, body: object = MATH, url: str = "/v1/presets/tutor", **headers: str):
    """PATCH a preset."""
    return api.request("PATCH", url, json=body, headers=headers)


def revision(api: Harness) -> int:
    """The revision that tutor serves."""
    number: int = api.get("/v1/presets/tutor").json()["revision"]
    return number


def test_document(api: Harness) -> None:
    """GET returns the document, with the server's fields and the revision as its entity tag."""
    response = api.get("/v1/presets/tutor")
    body = response.json()
    assert response.headers["ETag"] == '"1"'
    assert body["sources"] == {"math": {"weight": 0.5}}
    assert (body["revision"], body["state"], body["path"]) == (1, "ready", "blend")
    assert body["digest"].startswith("sha256:")


def test_list(api: Harness) -> None:
    """Lists are in OpenAI's shape."""
    body = api.get("/v1/presets").json()
    assert body["object"] == "list"
    assert [item["name"] for item in body["data"]] == ["tutor"]


def test_create(api: Harness) -> None:
    """POST answers 201 with the place of the new preset, which serves at once."""
    response = api.post("/v1/presets", {"name": "coder", "sources": {"code": {"weight": 1.0}}})
    assert response.status_code == 201
    assert response.headers["Location"] == "/v1/presets/coder"
    assert response.headers["ETag"] == '"1"'
    assert api.complete(model="coder").headers["X-Mergeserve-Preset"] == "coder@1"


@pytest.mark.parametrize("name", ["tutor", "math", "tiny", "base"])
def test_name_that_is_taken(api: Harness, name: str) -> None:
    """One name is one thing among base, presets and sources."""
    response = api.post("/v1/presets", {"name": name, "sources": {"code": {"weight": 1.0}}})
    assert response.status_code == 409
    assert response.json()["error"]["param"] == "name"


def test_dry_run(api: Harness) -> None:
    """A dry run says what a document would become, and creates nothing."""
    document = {"name": "coder", "sources": {"code": {"weight": 1.0}}}
    response = api.post("/v1/presets?dry_run=true", document)
    body = response.json()
    assert response.status_code == 200
    assert body["dry_run"] is True
    assert body["path"] == "blend"
    assert body["explain"]
    assert api.get("/v1/presets/coder").status_code == 404


def test_dry_run_of_what_cannot_be(api: Harness) -> None:
    """A dry run refuses like the edit itself."""
    document = {"name": "coder", "method": "ties", "sources": {"code": {"weight": 1.0}}}
    assert api.post("/v1/presets?dry_run=1", document).status_code in (400, 422)


@pytest.mark.parametrize(
    ("name", "headers", "status"),
    [
        ("tutor", {"If-None-Match": "*"}, 412),
        ("tutor", {"If-Match": '"7"'}, 412),
        ("tutor", {"If-Match": '"1"'}, 200),
        ("coder", {"If-Match": "*"}, 412),
        ("coder", {"If-None-Match": "*"}, 200),
    ],
)
def test_dry_run_under_a_condition(
    api: Harness, name: str, headers: dict[str, str], status: int
) -> None:
    """A dry run holds the edit's conditions against what is there."""
    document = {"name": name, "sources": {"code": {"weight": 1.0}}}
    response = api.post("/v1/presets?dry_run=true", document, headers=headers)
    assert response.status_code == status, response.text


def test_put_creates_and_replaces(api: Harness) -> None:
    """PUT answers 201 for a new preset and 200 for a replaced one; the body needs no name."""
    document = {"sources": {"code": {"weight": 1.0}}}
    created = api.request("PUT", "/v1/presets/coder", json=document)
    assert (created.status_code, created.headers["Location"]) == (201, "/v1/presets/coder")
    replaced = api.request("PUT", "/v1/presets/coder", json={**document, "description": "x"})
    assert (replaced.status_code, replaced.headers["ETag"]) == (200, '"2"')
    assert "Location" not in replaced.headers


def test_put_of_another_name(api: Harness) -> None:
    """The body's name must be the URL's."""
    response = api.request("PUT", "/v1/presets/coder", json={"name": "writer"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "name")


def test_what_get_returns_can_be_put(api: Harness) -> None:
    """A document can be sent back as it was got; content that is current makes no new revision."""
    document = api.get("/v1/presets/tutor").json()
    response = api.request("PUT", "/v1/presets/tutor", json=document)
    assert (response.status_code, response.headers["ETag"]) == (200, '"1"')


@pytest.mark.parametrize("content_type", ["application/json", "application/merge-patch+json"])
def test_patch(api: Harness, content_type: str) -> None:
    """A patch makes a revision, which the very next request gets; both content types do."""
    response = patch(api, **{"Content-Type": content_type})
    assert (response.status_code, response.headers["ETag"]) == (200, '"2"')
    assert response.json()["sources"]["math"]["weight"] == 0.8
    assert api.complete(model="tutor").headers["X-Mergeserve-Preset"] == "tutor@2"


def test_patch_that_changes_nothing(api: Harness) -> None:
    """A patch to what already is makes no revision."""
    response = patch(api, {"sources": {"math": {"weight": 0.5}}})
    assert (response.status_code, response.headers["ETag"]) == (200, '"1"')


def test_patch_of_nothing(api: Harness) -> None:
    """A preset that does not exist cannot be patched."""
    assert patch(api, url="/v1/presets/nobody").status_code == 404


def test_patch_that_cannot_be_built(api: Harness) -> None:
    """A revision that cannot be built is refused, and the old one goes on serving."""
    response = patch(api, {"sources": {"nobody": {"weight": 1.0}}})
    assert response.status_code in (400, 422)
    assert revision(api) == 1


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        ('"1"', 200),
        ('"7", "1"', 200),
        ('W/"3" , "1"', 200),
        ("*", 200),
        ('"7"', 412),
        ('"7", "8"', 412),
        ('W/"1"', 412),
        ('"abc"', 412),
        ('""', 412),
        ("1", 400),
        ('"1', 400),
        ('"1",', 400),
        ('"1" "2"', 400),
    ],
)
def test_if_match(api: Harness, if_match: str, status: int) -> None:
    """An edit whose If-Match does not hold changes nothing; tags compare strongly."""
    response = patch(api, **{"If-Match": if_match})
    assert response.status_code == status
    assert revision(api) == (2 if status == 200 else 1)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_if_match_of_other_methods(api: Harness, method: str) -> None:
    """PUT and DELETE keep conditions as well."""
    document = {"sources": {"code": {"weight": 1.0}}}
    body = {"json": document} if method == "PUT" else {}
    url = "/v1/presets/tutor"
    assert api.request(method, url, headers={"If-Match": '"9"'}, **body).status_code == 412
    assert revision(api) == 1
    assert api.request(method, url, headers={"If-Match": '"1"'}, **body).is_success


def test_if_match_of_rollback(api: Harness) -> None:
    """A rollback keeps conditions as well."""
    patch(api)
    response = api.post("/v1/presets/tutor/rollback", {"revision": 1}, headers={"If-Match": '"1"'})
    assert response.status_code == 412
    assert revision(api) == 2


def test_if_none_match_creates_only(api: Harness) -> None:
    """PUT with If-None-Match: * creates, and never replaces."""
    document = {"sources": {"code": {"weight": 1.0}}}
    headers = {"If-None-Match": "*"}
    url = "/v1/presets/{}"
    put = [
        api.request("PUT", url.format(name), json=document, headers=headers)
        for name in ("tutor", "coder")
    ]
    assert [response.status_code for response in put] == [412, 201]
    listed = api.request(
        "PUT", url.format("tutor"), json=document, headers={"If-None-Match": '"1"'}
    )
    assert listed.status_code == 400


def test_document_that_is_known(api: Harness) -> None:
    """A client that has the current revision is told so without the document."""
    known = api.get("/v1/presets/tutor", headers={"If-None-Match": 'W/"1"'})
    assert (known.status_code, known.headers["ETag"], known.content) == (304, '"1"', b"")
    patch(api)
    assert api.get("/v1/presets/tutor", headers={"If-None-Match": '"1"'}).status_code == 200


def test_document_of_another_revision(api: Harness) -> None:
    """A read under If-Match gives that revision or none (RFC 9110, 13.1.1)."""
    assert api.get("/v1/presets/tutor", headers={"If-Match": '"1"'}).status_code == 200
    assert api.get("/v1/presets/tutor", headers={"If-Match": "*"}).status_code == 200
    for tag in ('"2"', 'W/"1"'):
        refused = api.get("/v1/presets/tutor", headers={"If-Match": tag})
        assert refused.status_code == 412
        assert refused.json()["error"]["code"] == "precondition_failed"


def test_respond_async(api: Harness) -> None:
    """Prefer: respond-async is answered with 202 when there is a new revision."""
    response = patch(api, Prefer="wait=5, respond-async")
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "respond-async"
    assert response.headers["ETag"] == '"2"'
    assert patch(api, Prefer="respond-async").status_code in (200, 202)


def test_revisions_and_rollback(api: Harness) -> None:
    """A rollback is a new revision with the old content; kept ones can be read and called."""
    patch(api)
    response = api.post("/v1/presets/tutor/rollback?message=back", {"revision": 1})
    assert (response.status_code, response.headers["ETag"]) == (200, '"3"')
    listed = api.get("/v1/presets/tutor/revisions").json()["data"]
    assert [item["revision"] for item in listed] == [3, 2, 1]
    assert listed[0]["message"] == "back"
    assert listed[0]["digest"] == listed[2]["digest"] != listed[1]["digest"]
    old = api.get("/v1/presets/tutor?revision=2")
    assert (old.json()["sources"]["math"]["weight"], old.headers["ETag"]) == (0.8, '"2"')
    assert api.complete(model="tutor@2").headers["X-Mergeserve-Preset"] == "tutor@2"


def test_rollback_to_nothing(api: Harness) -> None:
    """A revision that there never was cannot be returned to."""
    assert api.post("/v1/presets/tutor/rollback", {"revision": 9}).status_code == 404


def test_delete(api: Harness) -> None:
    """DELETE answers 204; the preset cannot be called, and its numbers are not used again."""
    response = api.request("DELETE", "/v1/presets/tutor")
    assert (response.status_code, response.content) == (204, b"")
    assert api.get("/v1/presets/tutor").status_code == 404
    error = api.complete(model="tutor")
    assert (error.status_code, error.json()["error"]["code"]) == (404, "model_not_found")
    again = api.request("PUT", "/v1/presets/tutor", json={"sources": {"math": {"weight": 1.0}}})
    assert again.json()["revision"] > 1


def test_explain(api: Harness) -> None:
    """Explain tells what a revision resolves to."""
    response = api.get("/v1/presets/tutor/explain?revision=1")
    assert response.status_code == 200
    assert response.json()


def test_explain_without_the_base_at_hand(api: Harness) -> None:
    """Where the interference report cannot be made explain has none; who asks for it hears why."""
    assert api.get("/v1/presets/tutor/explain").json()["interference"] is None
    asked = api.get("/v1/presets/tutor/explain?interference=true")
    assert asked.status_code == 422
    assert "interference" in asked.json()["error"]["message"]


def test_edit_between_two_requests(api: Harness) -> None:
    """A request keeps the blend that it was accepted with; the next one gets the new weights."""
    api.complete(model="tutor")
    patch(api)
    api.complete(model="tutor")
    before, after = (request.members[0].weights for request in api.engine.requests)
    assert before.digest != after.digest
    assert before.coefficients[0, 0] == pytest.approx(0.5)
    assert after.coefficients[0, 0] == pytest.approx(0.8)


def test_overridden_weights(api: Harness) -> None:
    """A request may change weights for itself; its digest is the effective one."""
    plain = api.complete(model="tutor").json()["mergeserve"]
    response = api.complete(model="tutor", mergeserve={"weights": {"math": 0.9}})
    found = response.json()["mergeserve"]
    assert found["digest"] != plain["digest"]
    assert found["revision"] == 1
    assert api.engine.requests[-1].members[0].weights.coefficients[0, 0] == pytest.approx(0.9)


def test_inline_recipe(api: Harness) -> None:
    """A recipe in the request needs no preset."""
    recipe = {"method": "task_arithmetic", "sources": {"math": {"weight": 0.25}}}
    response = api.complete(model="base", mergeserve={"recipe": recipe})
    assert response.status_code == 200, response.text
    assert response.json()["mergeserve"]["path"] == "blend"
    assert response.json()["mergeserve"]["preset"] is None


def test_inline_recipe_has_the_defaults_of_a_preset(api: Harness) -> None:
    """A recipe that leaves its method out means what a preset's document means without one."""
    sources = {"math": {"weight": 0.25}}
    document = api.request("PUT", "/v1/presets/coder", json={"sources": sources}).json()
    inline = api.complete(model="base", mergeserve={"recipe": {"sources": sources}})
    assert inline.status_code == 200, inline.text
    assert inline.json()["mergeserve"]["digest"] == document["digest"]


def test_seeded_presets_are_presets(api: Harness) -> None:
    """Presets of a file are created once."""
    catalog = api.app.state.lifecycle.service.catalog
    assert catalog.seed_presets([preset()], "the test") == []
