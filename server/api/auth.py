"""Keys: who may call what. They are checked before routing."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import error_response
from server.api.keys import ApiKey
from server.errors import ForbiddenError, ServiceError, UnauthorizedError

OPEN_PATHS = frozenset({"/", "/health", "/healthz", "/readyz"})
METRICS_PATH = "/metrics"
ADMIN_ROOTS = ("/v1/presets", "/v1/sources")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class KeyRing:
    """The keys of a server. An admin key opens everything, a user's what changes nothing."""

    def __init__(
        self,
        user_keys: Sequence[ApiKey],
        admin_keys: Sequence[ApiKey],
        *,
        metrics_open: bool = False,
    ) -> None:
        self._users = [(key, _digest(key.value.encode())) for key in user_keys]
        self._admins = [(key, _digest(key.value.encode())) for key in admin_keys]
        self._metrics_open = metrics_open

    def check(self, method: str, path: str, token: bytes | None) -> ApiKey | None:
        """The key that allows this, or None where none is needed.

        Raises UnauthorizedError or ForbiddenError.
        """
        admin, user = _find(self._admins, token), _find(self._users, token)
        if admin is not None or self._is_open(method, path):
            return admin or user
        if not is_admin_plane(method, path):
            return user or self._refuse(token)
        if user is None:
            return self._refuse(token)
        raise ForbiddenError(
            f"{method} {path} changes state and needs an admin key, and this is a user's"
            + ("" if self._admins else "; the server was started without --admin-key")
        )

    def is_admin(self, token: bytes | None) -> bool:
        """Whether the holder of a token may change state: everybody where there are no keys."""
        return _find(self._admins, token) is not None or not (self._admins or self._users)

    def _is_open(self, method: str, path: str) -> bool:
        if path in OPEN_PATHS or (path == METRICS_PATH and self._metrics_open):
            return True
        if is_admin_plane(method, path):
            return not (self._admins or self._users)
        return not self._users

    def _refuse(self, token: bytes | None) -> ApiKey:
        if token is None:
            raise UnauthorizedError(
                "this server needs a key: send Authorization: Bearer KEY", code="missing_api_key"
            )
        raise UnauthorizedError("the key is not known to this server")


def is_admin_plane(method: str, path: str) -> bool:
    """Whether a request changes state."""
    inside = any(path == root or path.startswith(f"{root}/") for root in ADMIN_ROOTS)
    return inside and method not in SAFE_METHODS


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _find(keys: Sequence[tuple[ApiKey, bytes]], token: bytes | None) -> ApiKey | None:
    """The key that equals `token`, compared in a time that tells nothing of the keys."""
    if token is None:
        return None
    digest = _digest(token)
    matches = [key for key, expected in keys if hmac.compare_digest(expected, digest)]
    return matches[0] if matches else None


def bearer_token(header: str | None) -> bytes | None:
    """The token of an Authorization header."""
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    return token.encode("latin-1") if scheme.lower() == "bearer" and token else None


class Authentication:
    """Lets through what the key ring allows, and notes the key in the request's state."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        token = bearer_token(Headers(scope=scope).get("authorization"))
        try:
            key = self._keys.check(scope["method"], scope["path"], token)
        except ServiceError as error:
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {}).update(key=key, is_admin=self._keys.is_admin(token))
        await self.app(scope, receive, send)
