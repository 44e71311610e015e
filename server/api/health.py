"""Liveness, readiness and metrics."""

from fastapi import Request, Response
from pydantic import JsonValue

from server.api.lifecycle import LifecycleDep
from server.api.router import Router
from server.errors import UnavailableError
from server.metrics import CONTENT_TYPE, Metrics

router = Router()


@router.get("/healthz")
@router.get("/health")
async def health(lifecycle: LifecycleDep) -> dict[str, JsonValue]:
    """Whether the process works: also while loading and draining, not once its engine died."""
    if lifecycle.engine_error is not None:
        raise UnavailableError(lifecycle.engine_error, code="failed")
    return {"status": "ok"}


@router.get("/readyz")
async def ready(lifecycle: LifecycleDep) -> dict[str, JsonValue]:
    """Whether requests are served: the model is loaded, and the server is not shutting down."""
    lifecycle.check_serving()
    return {"status": "ready"}


@router.get("/metrics")
def metrics(request: Request, lifecycle: LifecycleDep) -> Response:
    """Prometheus text."""
    current = request.app.state.metrics
    assert isinstance(current, Metrics)
    if lifecycle.is_idle:
        current.idle()
    return Response(current.render(), headers={"Content-Type": CONTENT_TYPE})
