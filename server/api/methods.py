"""`GET /v1/methods`: every merge method and rule with its parameters, defaults, bounds, paper."""

from pydantic import JsonValue

from ensemble.catalog import RULES
from merging.methods import METHODS
from server.api.router import Router

router = Router()


@router.get("/v1/methods")
def list_methods() -> dict[str, JsonValue]:
    """The methods that a recipe can name, and the rules that an ensemble can."""
    rules = [{"kind": "rule", **rule.describe()} for rule in RULES.values()]
    return {"object": "list", "data": [*rules, *(method.describe() for method in METHODS.values())]}
