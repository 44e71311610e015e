"""Query parameters that a route does not know are errors, like unknown fields of a body."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from server.errors import InvalidRequestError


def only_query(*allowed: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses all other query parameters."""

    async def check(request: Request) -> None:
        for name in request.query_params:
            if name not in allowed:
                known = f"known are {', '.join(allowed)}" if allowed else "there are none here"
                raise InvalidRequestError(
                    f"{name}: unknown query parameter; {known}",
                    param=name,
                    code="unknown_parameter",
                )

    return check
