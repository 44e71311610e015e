"""`GET /`: what this server is, and every route that it has."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from jinja2 import Environment

from server.api.router import Router

router = Router()

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mergeserve</title>
<style>
  :root { color-scheme: light dark }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem }
  td { padding: .15rem 1rem .15rem 0; vertical-align: top } code { white-space: nowrap }
</style>
<h1>mergeserve</h1>
<p>{{ about }} Point any OpenAI client at <code>{{ base_url }}v1</code>.
<table>{% for route in routes %}
<tr><td>{{ route.method }}<td><code>{{ route.path }}</code><td>{{ route.summary }}{% endfor %}
</table>
"""

ABOUT = "Merges of one language model, served behind the OpenAI API and edited while they run."


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the index."""

    method: str
    path: str
    summary: str


def list_routes(routers: Sequence[APIRouter]) -> list[Route]:
    """Every route of `routers`, by path, with the first line of its docstring."""
    found = [
        Route(method, route.path.replace(":path", ""), _summary(route))
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in (route.methods or set()) - {"HEAD"}
    ]
    return sorted(found, key=lambda route: (route.path, route.method))


def _summary(route: APIRoute) -> str:
    return (route.endpoint.__doc__ or "").strip().partition("\n")[0]


@router.get("/")
def index(request: Request) -> Response:
    """This list: a page for browsers, JSON for others. It needs no key."""
    routes: list[Route] = request.app.state.routes
    if "text/html" in request.headers.get("accept", ""):
        page = Environment(autoescape=True).from_string(PAGE)
        return HTMLResponse(page.render(about=ABOUT, base_url=request.base_url, routes=routes))
    return JSONResponse(
        {"object": "list", "about": ABOUT, "data": [asdict(route) for route in routes]}
    )
