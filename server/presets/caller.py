"""From what a model string means to weights: at once where they are there, else when built."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from merging.blend import Blend
from server.engine.variant import Variant
from server.errors import ServiceError, UnavailableError, UnprocessableError
from server.presets.doubts import Doubts, ensemble_key
from server.presets.ensembles import EnsembleMember
from server.presets.jobs import RETRY_SECONDS
from server.presets.names import BASE
from server.presets.resolved import Resolved
from server.presets.resolver import Resolver
from server.presets.served import ChatDefaults, Mode, Overrides, Served, ServedMember
from server.presets.snapshot import Preset, Snapshot
from server.presets.sources import Source
from server.presets.variants import Variants
from server.presets.weighing import Weighing
from server.presets.workshop import BuildError

Made = TypeVar("Made")
Weights = Future[Blend] | Future[Variant]
"""The weights of one row, now or later."""


class Caller:
    """Resolves model strings and gets their weights.

    `patience`: seconds that a request waits for weights that are not there.
    """

    def __init__(
        self, resolver: Resolver, variants: Variants, doubts: Doubts, patience: float
    ) -> None:
        self._resolver, self._variants, self._doubts = resolver, variants, doubts
        self.patience = patience

    def begin(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Future[Served]:
        """What a model string means now; done already unless weights have to be built.

        The future is the caller's own: who waits no more cancels it. It fails with
        UnprocessableError if they cannot be built.
        """
        resolved = self._resolver.resolve(snapshot, model, overrides)
        if overrides.is_probe:
            self._variants.check_spare([member.plan for member in resolved.members])
        return self._served(resolved)

    def chat_defaults(self, snapshot: Snapshot, model: str) -> ChatDefaults:
        """How conversations with a model are written; no weights are asked for."""
        return self._resolver.chat_defaults(snapshot, model)

    def other_mode(self, snapshot: Snapshot, served: Served) -> Served | None:
        """The same revision of a preset in its other mode, whatever callers may ask for; None
        unless that revision still serves and all weights are in memory.
        """
        preset = snapshot.presets.get(served.preset or "")
        if preset is None:
            return None
        mode: Mode = "merge" if served.mode == "ensemble" else "ensemble"
        resolved = self._resolver.in_mode(snapshot, preset, mode)
        return self._at_hand(resolved) if resolved.revision == served.revision else None

    def base(self) -> Served:
        """The base."""
        return self._served(Resolved(BASE, self._resolver.base_plan)).result()

    def preset_at_hand(self, snapshot: Snapshot, preset: Preset) -> Served | None:
        """What a preset serves, whatever callers may ask for; None unless all weights are there."""
        try:
            return self._at_hand(
                self._resolver.in_mode(snapshot, preset, preset.record.document.mode)
            )
        except ServiceError:  # say, a member of an ensemble that is gone
            return None

    def source_at_hand(self, source: Source) -> Served | None:
        """The same of a source alone."""
        if source.plan is None:
            return None
        return self._at_hand(Resolved(source.name, source.plan))

    def _at_hand(self, resolved: Resolved) -> Served | None:
        plans = [member.plan for member in resolved.members]
        if any(p.variant and not self._variants.built(p.variant.digest) for p in plans):
            return None
        asked = self._served(resolved)
        return asked.result() if asked.done() else None

    def begin_weighing(
        self, snapshot: Snapshot, model: str, overrides: Overrides
    ) -> Future[Weighing]:
        """The sources among which a request's prompt is to choose, in the same way."""
        auto = overrides.auto
        assert auto is not None, "nothing is to be chosen"
        candidates = self._resolver.candidates(snapshot, model, overrides)

        def finish(weights: Mapping[str, float]) -> Future[Served]:
            if auto == "route":
                return self._served(candidates.route(weights))
            chosen = replace(candidates.overrides, weights=weights)
            resolved = self._resolver.resolve(snapshot, model, chosen)
            return self._served(replace(resolved, weights=weights))

        def weighing(own: Sequence[Blend | Variant]) -> Weighing:
            pairs = zip(candidates.sources, own, strict=True)
            sources = tuple(ServedMember(source.name, weights) for source, weights in pairs)
            return Weighing(auto, overrides.weights_temperature or 1.0, sources, finish)

        return self._with_weights(candidates.preset, candidates.sources, weighing)

    def _served(self, resolved: Resolved) -> Future[Served]:
        def served(weights: Sequence[Blend | Variant]) -> Served:
            return replace(resolved.served(weights), warnings=self._warnings(resolved))

        return self._with_weights(resolved, resolved.members, served)

    def _warnings(self, resolved: Resolved) -> tuple[str, ...]:
        """Why the answer may be gibberish."""
        if resolved.ensemble is None:
            return self._doubts.of_merge(resolved.plan)
        combination, key = resolved.ensemble.combination, ensemble_key(resolved.ensemble.digest)
        return self._doubts.of_ensemble(
            resolved.plan, combination.rule, combination.coefficients, key
        )

    def _with_weights(
        self,
        resolved: Resolved,
        members: Sequence[EnsembleMember],
        make: Callable[[Sequence[Blend | Variant]], Made],
    ) -> Future[Made]:
        """What `make` makes of the members' weights, once all are there."""
        future: Future[Made] = Future()
        plans = [member.plan for member in members]
        try:
            self._variants.check_all(plans)
            asked: list[Weights] = [
                _ready(plan.blend)
                if plan.variant is None
                else self._variants.ask(plan, lambda: not future.cancelled())
                for plan in plans
            ]
        except Exception as error:
            future.cancel()  # builds that were asked for until then: nobody waits for them
            if isinstance(error, BuildError):
                raise _refused(resolved, error) from error
            raise
        _pass_on(asked, future, resolved, make)
        return future

    def resolve(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Served:
        """The same, waiting for it: at most `patience` seconds."""
        future = self.begin(snapshot, model, overrides)
        try:
            return future.result(self.patience)
        except TimeoutError:
            future.cancel()
            raise self.out_of_patience(model) from None

    def out_of_patience(self, model: str, timeout: float | None = None) -> UnavailableError:
        """The error for a request that waited for weights long enough. `timeout`: seconds that a
        request may take in all, if it was these that were over.
        """
        limit = f"{self.patience:g} s that a request waits"
        if timeout is not None:
            limit = f"{timeout:g} s that a request may take (--request-timeout)"
        return UnavailableError(
            f"the weights of {model!r} are being built, which takes longer than the {limit}: try "
            "again",
            retry_after=RETRY_SECONDS,
            code="variant_cold",
        )


def _ready(blend: Blend) -> Future[Blend]:
    done: Future[Blend] = Future()
    done.set_result(blend)
    return done


def _pass_on(
    asked: Sequence[Weights],
    future: Future[Made],
    resolved: Resolved,
    make: Callable[[Sequence[Blend | Variant]], Made],
) -> None:
    """Complete `future` when all that was asked for is there, or with the first error."""
    for each in asked:
        if not each.done():
            each.add_done_callback(lambda _: _pass_on(asked, future, resolved, make))
            return
    if not future.set_running_or_notify_cancel():
        return  # nobody waits any more
    errors = [error for each in asked if (error := each.exception()) is not None]
    if not errors:
        future.set_result(make([each.result() for each in asked]))
    elif isinstance(errors[0], BuildError):
        future.set_exception(_refused(resolved, errors[0]))
    else:
        future.set_exception(errors[0])


def _refused(resolved: Resolved, error: BuildError) -> UnprocessableError:
    reasons = "; ".join(error.reasons)
    return UnprocessableError(f"{resolved.label} cannot be called: {reasons}", param="model")
