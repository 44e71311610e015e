"""From what a model string means to weights: at once where they are there, else when built."""

from concurrent.futures import Future

from server.engine.variant import Variant
from server.errors import UnavailableError, UnprocessableError
from server.presets.jobs import RETRY_SECONDS
from server.presets.resolver import Resolver
from server.presets.served import Overrides, Resolved, Served
from server.presets.snapshot import Snapshot
from server.presets.variants import Variants
from server.presets.workshop import BuildError


class Caller:
    """Resolves model strings and gets their weights.

    `patience`: seconds that a request waits for weights that are not there.
    """

    def __init__(self, resolver: Resolver, variants: Variants, patience: float) -> None:
        self._resolver, self._variants = resolver, variants
        self.patience = patience

    def begin(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Future[Served]:
        """What a model string means now; done already unless weights have to be built.

        The future is the caller's own: who waits no more cancels it. It fails with
        UnprocessableError if they cannot be built.
        """
        resolved = self._resolver.resolve(snapshot, model, overrides)
        future: Future[Served] = Future()
        if resolved.plan.variant is None:
            future.set_result(resolved.served(resolved.plan.blend))
            return future
        try:
            asked = self._variants.ask(resolved.plan, lambda: not future.cancelled())
        except BuildError as error:
            raise _refused(resolved, error) from error
        asked.add_done_callback(lambda done: _pass_on(done, future, resolved))
        return future

    def resolve(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Served:
        """The same, waiting for it: at most `patience` seconds."""
        future = self.begin(snapshot, model, overrides)
        try:
            return future.result(self.patience)
        except TimeoutError:
            future.cancel()
            raise self.out_of_patience(model) from None

    def out_of_patience(self, model: str) -> UnavailableError:
        """The error for a request that waited for weights long enough."""
        return UnavailableError(
            f"the weights of {model!r} are being built, which takes longer than the "
            f"{self.patience:g} s that a request waits: try again",
            retry_after=RETRY_SECONDS,
            code="variant_cold",
        )


def _pass_on(done: Future[Variant], future: Future[Served], resolved: Resolved) -> None:
    if not future.set_running_or_notify_cancel():
        return  # nobody waits any more
    error = done.exception()
    if error is None:
        future.set_result(resolved.served(done.result()))
    elif isinstance(error, BuildError):
        future.set_exception(_refused(resolved, error))
    else:
        future.set_exception(error)


def _refused(resolved: Resolved, error: BuildError) -> UnprocessableError:
    reasons = "; ".join(error.reasons)
    return UnprocessableError(f"{resolved.label} cannot be called: {reasons}", param="model")
