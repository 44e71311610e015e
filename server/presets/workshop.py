"""Building one variant: space from the engine, weights from the merge."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch

from merging.build import BuildCancelled, BuildReport, build
from merging.errors import MergingError
from merging.trim_cache import TrimCache
from merging.variant import VariantPlan
from server.engine.errors import EngineError
from server.engine.variant import Variant
from server.errors import UnavailableError, UnprocessableError
from server.presets.editing import Phases
from server.presets.shelf import Built, Need


class BuildError(UnprocessableError):
    """A variant cannot be built, for the `reasons`."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(f"cannot be built: {'; '.join(reasons)}")
        self.reasons = tuple(reasons)


class Unfinished(Protocol):
    """Space for the weights of a variant. See `server.engine.variant`."""

    @property
    def names(self) -> Collection[str]:
        """All tensors that must be written."""

    @property
    def num_bytes(self) -> int:
        """What the variant's weights will take."""

    def tensor(self, name: str) -> torch.Tensor:
        """Where to write one."""

    def finish(self) -> Variant:
        """The variant, once everything is written."""


class Factory(Protocol):
    """Makes space for variants. See `server.engine.variant`."""

    def kv_bytes(self, layers: Sequence[int]) -> int:
        """What a variant with these layers of the base takes at most for keys and values, beyond
        the base's.
        """

    def start(self, digest: str, layers: Sequence[int], names: Collection[str]) -> Unfinished:
        """Space for a variant with these layers of the base, whose tensors `names` are new."""


class Workshop:
    """Builds variants of the resident base, one at a time."""

    def __init__(
        self,
        factory: Factory,
        cache: TrimCache,
        check: Callable[[Variant], None] = lambda variant: None,
        num_layers: int = 0,
    ) -> None:
        """`check` tries a variant, and raises EngineError if it cannot be run: it is asked for the
        first one of every stack of layers but the base's own `num_layers`, which are known to run.
        """
        self._factory = factory
        self.cache = cache
        self._check = check
        self._checked = {tuple(range(num_layers))}

    def need(self, plan: VariantPlan) -> Need:
        """What a variant needs, as far as its plan tells: weights that are to be written beside
        its own are not in it.
        """
        return Need(plan.num_bytes, self._factory.kv_bytes(plan.layers))

    def build(
        self, plan: VariantPlan, admit: Callable[[Need], None], cancelled: Callable[[], bool]
    ) -> Built:
        """Build a variant; BuildError with every reason, and then nothing is left of it.

        `admit` is told what it needs before that is used, and may refuse it.
        """
        phases = Phases()
        try:
            with phases.timed("allocate"):
                names = {tensor.name for tensor in plan.tensors}
                unfinished = self._factory.start(plan.digest, plan.layers, names)
                admit(Need(unfinished.num_bytes, self._factory.kv_bytes(plan.layers)))
            report = build(plan, unfinished.tensor, cache=self.cache, cancelled=cancelled)
            with phases.timed("share"):
                _write_shared(plan, unfinished, names)
            with phases.timed("finish"):
                variant = unfinished.finish()
            if plan.layers not in self._checked:
                with phases.timed("check"):
                    self._check(variant)
                self._checked.add(plan.layers)
        except BuildCancelled as error:
            raise UnavailableError("the server is shutting down", code="draining") from error
        except MergingError as error:
            raise BuildError(error.reasons) from error
        except EngineError as error:
            raise BuildError([str(error)]) from error
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise BuildError(["there is not enough memory for its weights"]) from None
        return Built(variant, plan.method.name, {**phases.seconds, **_phases(report)})


def _write_shared(plan: VariantPlan, unfinished: Unfinished, names: Collection[str]) -> None:
    """Write the base's own values where they share a product with merged ones."""
    for name in sorted(set(unfinished.names) - set(names)):
        unfinished.tensor(name).copy_(plan.resident.tensor(plan.shared[name]))


def _phases(report: BuildReport) -> dict[str, float]:
    """The seconds of the merge by phase: each takes the share that its threads took."""
    total = sum(report.phase_seconds.values())
    if not total:
        return {"merge": report.seconds}
    return {p: report.seconds * s / total for p, s in report.phase_seconds.items()}


def _is_out_of_memory(error: Exception) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
