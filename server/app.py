"""The application: its middleware, routes and lifecycle, wired here and nowhere else."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import yaml
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from merging.regular_file import MAX_YAML, read_file
from merging.trim_cache import TrimCache
from server.api import (
    compare,
    health,
    index,
    loglikelihood,
    methods,
    openai,
    presets,
    sources,
    tokenization,
)
from server.api.access_log import AccessLog
from server.api.auth import Authentication, KeyRing
from server.api.errors import (
    ErrorBoundary,
    on_http_exception,
    on_invalid_parameters,
    on_service_error,
    on_template_error,
)
from server.api.fidelity import Fidelity
from server.api.gate import Gate
from server.api.lifecycle import Lifecycle
from server.api.service import Service
from server.api.trials import Trials
from server.demo import demo_presets, demo_sources, ensure_demo_model
from server.engine.async_engine import AsyncEngine
from server.engine.device import pick_device
from server.engine.loading import LoadedModel, load_engine
from server.engine.memory import GIB, free_bytes
from server.engine.model_files import Progress, model_folder
from server.engine.options import EngineOptions
from server.engine.probe import check_variant
from server.engine.source_conversation import read_conversation
from server.engine.tokenizer import TemplateError
from server.errors import InvalidRequestError, ServiceError
from server.held_store import hold_store
from server.metrics import Metrics
from server.presets.catalog import Catalog
from server.presets.document import PresetDocument, parse_document
from server.presets.parents import parents_first
from server.presets.store import PresetStore
from server.presets.variants import Variants
from server.presets.workshop import Workshop
from server.settings import Settings

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that a request waits for weights that are being built."""

Loader = Callable[[Settings, Metrics], Service]
"""Makes the service; runs on a thread of its own while the server already listens."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def load_service(settings: Settings, metrics: Metrics, progress: Progress = no_progress) -> Service:
    """Load the model, then the sources and presets."""
    model = ensure_demo_model() if settings.demo else settings.model
    assert model is not None, "a model or --demo is asked for before anything is loaded"
    loaded = load_engine(model, _engine_options(settings), progress=progress, observer=metrics)
    variants = _variants(loaded, settings, metrics)
    held = hold_store(settings, loaded.base)
    try:
        catalog = _catalog(held.store, loaded, settings, metrics, variants, location=str(model))
        _fill(catalog, settings, progress)
    except BaseException:
        held.close()  # for who tries again in this process
        raise

    def close() -> None:
        catalog.close()
        held.close()

    engine = AsyncEngine(loaded.engine, num_threads=settings.num_threads)
    fidelity = None
    if settings.fidelity_sample > 0:
        fidelity = Fidelity(engine, catalog, metrics, settings.fidelity_sample)
    return Service(
        engine,
        loaded.tokenizer,
        catalog,
        settings.request_timeout,
        close,
        fidelity,
        Trials(engine, loaded.tokenizer, catalog),
        settings.sampling_defaults,
    )


def _catalog(
    store: PresetStore,
    loaded: LoadedModel,
    settings: Settings,
    metrics: Metrics,
    variants: Variants,
    *,
    location: str,
) -> Catalog:
    return Catalog(
        store,
        loaded.base,
        policy=settings.policy,
        source_dirs=settings.source_dir,
        allow_base_mismatch=settings.allow_base_mismatch,
        observer=metrics,
        revisions_kept=settings.revisions_kept,
        base_tensor=loaded.base_tensor,
        resident=loaded.weights,
        dense_cache=int(settings.dense_cache * GIB),
        variants=variants,
        read_conversation=partial(read_conversation, base=loaded.tokenizer),
        location=location,
        patience=PATIENCE,
    )


def _variants(loaded: LoadedModel, settings: Settings, metrics: Metrics) -> Variants:
    """What builds variants, within the bytes they may take: by default half of what is free."""
    if settings.variant_memory is None:
        budget = free_bytes(pick_device(settings.device)) // 2
    else:
        budget = int(settings.variant_memory * GIB)
    logger.info("merged weights may take %.2f GiB (--variant-memory)", budget / GIB)
    workshop = Workshop(
        loaded.variants, TrimCache(budget), check_variant, num_layers=loaded.base.num_layers
    )
    return Variants(workshop, budget, metrics)


def _engine_options(settings: Settings) -> EngineOptions:
    template = settings.chat_template
    return EngineOptions(
        device=settings.device,
        dtype=settings.dtype,
        max_rows=settings.max_rows,
        max_model_len=settings.max_model_len,
        max_queued=settings.max_queued,
        kv_memory=settings.kv_memory,
        num_threads=settings.num_threads,
        served_model_name=settings.served_model_name,
        chat_template=None if template is None else read_file(template).decode(),
    )


def _fill(catalog: Catalog, settings: Settings, progress: Progress) -> None:
    """Register what the store, the demo and the settings name."""
    catalog.load()
    for name, folder in (demo_sources() if settings.demo else {}).items():
        catalog.add_source(name, folder)
    specs = {spec.name: spec for spec in settings.source}
    for name in parents_first(specs):
        spec, what = specs[name], f"reading source {name}"
        folder = model_folder(spec.location, progress)
        progress(what, 0, 0)
        catalog.add_source(name, folder, spec.location, partial(progress, what), spec.parent)
    files = [demo_presets()] if settings.demo else []
    files += [settings.presets] if settings.presets else []
    for path in files:
        for line in catalog.seed_presets(read_presets(path), path.name):
            logger.info("%s", line)
    progress("building pinned presets", 0, 0)
    catalog.build_pinned()


def read_presets(path: Path) -> list[PresetDocument]:
    """Read a YAML list of preset documents."""
    try:
        content = yaml.safe_load(read_file(path, MAX_YAML).decode())
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequestError(f"{path}: {error}") from error
    if not isinstance(content, list):
        raise InvalidRequestError(f"{path}: expected a list of preset documents")
    try:
        return [parse_document(item) for item in content]
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{path}: {error.message}") from error


def create_app(settings: Settings, *, load: Loader = load_service) -> FastAPI:
    """An application that begins to load when it starts. Several can live in one process."""
    metrics = Metrics()
    lifecycle = Lifecycle(partial(load, settings, metrics))
    keys = KeyRing(settings.api_key, settings.admin_key, metrics_open=settings.metrics_open)
    app = FastAPI(
        title="mergeserve",
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(lifecycle),
        middleware=[  # the first one is outermost
            Middleware(AccessLog, metrics),
            Middleware(ErrorBoundary),
            Middleware(Authentication, keys),
            Middleware(Gate, lifecycle),
        ],
        exception_handlers={
            ServiceError: on_service_error,
            TemplateError: on_template_error,
            RequestValidationError: on_invalid_parameters,
            HTTPException: on_http_exception,
        },
    )
    app.state.lifecycle = lifecycle
    app.state.metrics = metrics
    routes = (openai, loglikelihood, compare, tokenization, presets, sources, methods, health)
    app.state.routes = index.list_routes([module.router for module in routes])
    for module in (*routes, index):
        app.include_router(module.router)
    return app


def _lifespan(
    lifecycle: Lifecycle,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        yield
        await lifecycle.stop()

    return lifespan
