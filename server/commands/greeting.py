"""What the log says once the server is ready: what can be called, and what to do next."""

import json
import logging
from dataclasses import dataclass

from server.api.service import Service
from server.presets.catalog import Catalog
from server.presets.names import BASE
from server.presets.record import PresetRecord, SourceCard

logger = logging.getLogger(__name__)

NUM_NAMES = 20
QUESTION = "What is the capital of France?"
HEADERS = "-H 'Content-Type: application/json'"
KEY_HEADER = ' -H "Authorization: Bearer $MERGESERVE_API_KEY"'


@dataclass(frozen=True, slots=True)
class Greeting:
    """The names that can be called, those whose weights are built when they are, and for those that
    cannot be called the first reason.
    """

    ready: tuple[str, ...]
    cold: tuple[str, ...]
    failed: dict[str, str]


def sort_names(catalog: Catalog) -> Greeting:
    """Where everything that `/v1/models` lists stands."""
    items: list[PresetRecord | SourceCard] = [*catalog.presets(), *catalog.sources()]
    states = {item.name: item for item in items}
    failed = {
        name: next(iter(item.reasons), "no reason is known")
        for name, item in states.items()
        if item.state == "failed"
    }
    cold = {name for name, item in states.items() if item.state in ("cold", "building")}
    callable_names = [card.id for card in catalog.models() if card.id not in failed]
    return Greeting(
        ready=tuple(name for name in callable_names if name not in cold),
        cold=tuple(name for name in callable_names if name in cold),
        failed=failed,
    )


def greet(service: Service, url: str, *, needs_key: bool) -> None:
    """Log it, what failed as a warning each, and last a line that can be pasted into a shell."""
    found = sort_names(service.catalog)
    logger.info("ready: %s", _listed(found.ready))
    if found.cold:
        logger.info("built when they are first called: %s", _listed(found.cold))
    for name, reason in found.failed.items():
        logger.warning("not ready: %s: %s", name, reason)
    logger.info("every route is listed at %s/", url)
    logger.info("try: %s", example(service, url, needs_key=needs_key))


def example(service: Service, url: str, *, needs_key: bool) -> str:
    """A curl line that works as it is pasted; of a key it names the variable."""
    body: dict[str, object] = {"model": BASE, "max_tokens": 64}
    if service.tokenizer.has_chat_template:
        path, body["messages"] = "chat/completions", [{"role": "user", "content": QUESTION}]
    else:
        path, body["prompt"] = "completions", "The capital of France is"
    key = KEY_HEADER if needs_key else ""
    return f"curl {url}/v1/{path} {HEADERS}{key} -d '{json.dumps(body)}'"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else ""
    return ", ".join(names[:NUM_NAMES]) + more
