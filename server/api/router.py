"""A router whose GET routes answer HEAD too."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.types import DecoratedCallable


class Router(APIRouter):
    """HTTP asks for HEAD wherever there is GET; uvicorn leaves out the body."""

    def get(self, path: str, **options: Any) -> Callable[[DecoratedCallable], DecoratedCallable]:
        """A route for GET and HEAD; `options` as in FastAPI."""
        return self.api_route(path, methods=["GET", "HEAD"], **options)
