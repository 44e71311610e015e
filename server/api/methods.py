"""`GET /v1/methods`: every merge method with its parameters, defaults, bounds and paper."""

from fastapi import APIRouter
from pydantic import JsonValue

from merging.methods import METHODS

router = APIRouter()


@router.get("/v1/methods")
def list_methods() -> dict[str, JsonValue]:
    """The methods that a recipe can name."""
    return {"object": "list", "data": [method.describe() for method in METHODS.values()]}
