"""Keys: who may call what, before anything else is looked at."""

import pytest

from server.api.auth import KeyRing, bearer_token
from server.api.keys import ApiKey, parse_key
from server.errors import ForbiddenError, UnauthorizedError
from tests.server.api.conftest import StartApp

USER, ADMIN = "user-secret", "admin-secret"
USER_KEYS = [ApiKey("", "another"), ApiKey("alice", USER)]
ADMIN_KEYS = [ApiKey("root", ADMIN)]
WRONG = "guess"

READING = [
    ("GET", "/v1/models"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("GET", "/v1/presets"),
    ("GET", "/v1/presets/tutor/explain"),
    ("GET", "/v1/sources"),
    ("GET", "/v1/methods"),
    ("GET", "/metrics"),
    ("GET", "/nothing/at/all"),
    ("POST", "/v1/presetsx"),
]
EDITING = [
    ("POST", "/v1/presets"),
    ("PUT", "/v1/presets/tutor"),
    ("PATCH", "/v1/presets/tutor"),
    ("DELETE", "/v1/presets/tutor"),
    ("POST", "/v1/presets/tutor/rollback"),
    ("POST", "/v1/sources"),
    ("PUT", "/v1/sources/math"),
    ("DELETE", "/v1/sources/math"),
]
OPEN = [("GET", "/healthz"), ("GET", "/health"), ("GET", "/readyz"), ("GET", "/")]


def verdict(ring: KeyRing, method: str, path: str, token: str | None) -> int:
    """The status that the keys alone would give."""
    try:
        ring.check(method, path, None if token is None else token.encode())
    except UnauthorizedError:
        return 401
    except ForbiddenError:
        return 403
    return 200


# Keys that are set, and the verdicts for: no key, an unknown one, a user's, an admin's.
MATRIX = [
    ([], [], "reading", (200, 200, 200, 200)),
    ([], [], "editing", (200, 200, 200, 200)),
    (USER_KEYS, [], "reading", (401, 401, 200, 401)),
    (USER_KEYS, [], "editing", (401, 401, 403, 401)),
    ([], ADMIN_KEYS, "reading", (200, 200, 200, 200)),
    ([], ADMIN_KEYS, "editing", (401, 401, 401, 200)),
    (USER_KEYS, ADMIN_KEYS, "reading", (401, 401, 200, 200)),
    (USER_KEYS, ADMIN_KEYS, "editing", (401, 401, 403, 200)),
]


@pytest.mark.parametrize(("users", "admins", "plane", "expected"), MATRIX)
def test_matrix(users, admins, plane: str, expected: tuple[int, ...]) -> None:
    """Reading needs a key where API keys are set, editing the admin key where any key is set."""
    ring = KeyRing(users, admins)
    for method, path in READING if plane == "reading" else EDITING:
        found = tuple(verdict(ring, method, path, token) for token in (None, WRONG, USER, ADMIN))
        assert found == expected, (method, path)


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_open_paths(method: str, path: str) -> None:
    """Health and the static page need no key."""
    ring = KeyRing(USER_KEYS, ADMIN_KEYS)
    assert verdict(ring, method, path, None) == 200
    assert verdict(ring, method, path, WRONG) == 200


def test_open_metrics() -> None:
    """--metrics-open lets everybody read the metrics."""
    assert verdict(KeyRing(USER_KEYS, ADMIN_KEYS), "GET", "/metrics", None) == 401
    assert (
        verdict(KeyRing(USER_KEYS, ADMIN_KEYS, metrics_open=True), "GET", "/metrics", None) == 200
    )


def test_key_that_was_used_is_known() -> None:
    """The key's holder is the author of what is done with it."""
    ring = KeyRing(USER_KEYS, ADMIN_KEYS)
    assert ring.check("GET", "/v1/models", USER.encode()) is USER_KEYS[1]
    assert ring.check("PATCH", "/v1/presets/x", ADMIN.encode()) is ADMIN_KEYS[0]
    assert KeyRing([], []).check("PATCH", "/v1/presets/x", b"any") is None


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
        ("abc", None),
        ("Bearer abc", b"abc"),
        ("bearer  abc ", b"abc"),
        ("Bearer sch\xf6n", b"sch\xf6n"),
    ],
)
def test_bearer_token(header: str | None, token: bytes | None) -> None:
    """Only a bearer token counts, and any bytes are compared without an error."""
    assert bearer_token(header) == token


@pytest.mark.parametrize(
    ("text", "key"), [("k", ApiKey("", "k")), ("alice:k:1", ApiKey("alice", "k:1"))]
)
def test_parse_key(text: str, key: ApiKey) -> None:
    """A key is KEY or NAME:KEY; what follows the first colon is the key."""
    assert parse_key(text) == key


@pytest.mark.parametrize("text", ["", " ", ":k", "a b:k", "alice:", "se cret", "schlüssel"])
def test_malformed_key(text: str) -> None:
    """A key that no header can carry is refused, and its text is not shown."""
    with pytest.raises(ValueError, match=r"key|KEY") as caught:
        parse_key(text)
    assert "cret" not in str(caught.value)


def test_key_is_not_in_its_repr() -> None:
    """Whatever is logged of a key, its value is not."""
    assert USER not in repr(USER_KEYS)


def test_keys_come_before_routing(start: StartApp) -> None:
    """Without a key nothing is learned: not even whether a path exists, or a body is wrong."""
    api = start(api_key=[f"alice:{USER}"], admin_key=[f"root:{ADMIN}"])
    for method, path in [("GET", "/nothing"), ("POST", "/v1/completions"), ("FOO", "/v1/models")]:
        response = api.request(method, path)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "missing_api_key"
    wrong = api.get("/v1/models", headers={"Authorization": f"Bearer {WRONG}"})
    assert wrong.json()["error"]["code"] == "invalid_api_key"


def test_user_is_told_why(start: StartApp) -> None:
    """A user's key on the admin plane is 403, also where there is no admin key at all."""
    api = start(api_key=[USER])
    response = api.request(
        "DELETE", "/v1/presets/tutor", headers={"Authorization": f"Bearer {USER}"}
    )
    assert response.status_code == 403
    assert "--admin-key" in response.json()["error"]["message"]
    assert api.get("/v1/presets/tutor", headers={"Authorization": f"Bearer {USER}"}).is_success


def test_author_is_the_keys_name(start: StartApp) -> None:
    """The name of the key that edits is the revision's author; without keys there is none."""
    api = start(api_key=[USER], admin_key=[f"root:{ADMIN}"])
    patch = {"sources": {"math": {"weight": 0.8}}}
    edited = api.request(
        "PATCH",
        "/v1/presets/tutor?message=more%20math",
        json=patch,
        headers={"Authorization": f"Bearer {ADMIN}"},
    )
    assert (edited.json()["author"], edited.json()["message"]) == ("root", "more math")


def test_folders_are_for_those_with_the_admin_key(start: StartApp) -> None:
    """To others a source's root is its name; without keys everybody is the operator."""
    api = start(api_key=[USER], admin_key=[ADMIN])

    def root(key: str | None, path: str = "/v1/models/math") -> str:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return str(api.get(path, headers=headers).json()["root"])

    assert root(USER) == "math"
    assert root(ADMIN).endswith("/sources/math")
    listed = api.get("/v1/models", headers={"Authorization": f"Bearer {USER}"}).json()["data"]
    assert not any(card["root"].startswith("/") for card in listed)
    api = start(admin_key=[ADMIN])
    assert root(None) == "math"
    api = start()
    assert root(None).endswith("/sources/math")


def test_keys_are_not_logged(start: StartApp, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the holder of a key, and never the key."""
    api = start(api_key=[f"alice:{USER}"], admin_key=[ADMIN])
    with caplog.at_level("INFO"):
        api.get("/v1/models", headers={"Authorization": f"Bearer {USER}"})
        api.get("/v1/models", headers={"Authorization": f"Bearer {WRONG}"})
    assert "key=alice" in caplog.text
    assert USER not in caplog.text
    assert WRONG not in caplog.text
