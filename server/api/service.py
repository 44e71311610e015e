"""What the routes stand on: a loaded model, its tokenizer and the catalog."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool

from server.engine.async_engine import AsyncEngine
from server.engine.tokenizer import Tokenizer
from server.presets.catalog import Catalog
from server.presets.served import Overrides, Served


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A loaded model and all that goes with it. `close` is called once the engine has stopped."""

    engine: AsyncEngine
    tokenizer: Tokenizer
    catalog: Catalog
    request_timeout: float | None = None
    close: Callable[[], None] = lambda: None

    @property
    def max_model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.engine.config.max_model_len

    async def resolve(self, model: str, overrides: Overrides | None) -> Served:
        """Pin a request to what its `model` means now."""
        if overrides is None and "@" not in model:
            return self.catalog.resolve(model)
        # An older revision is read from the database, and overrides compile a blend of their own:
        # not on the thread that serves everybody's streams.
        return await run_in_threadpool(self.catalog.resolve, model, overrides)
