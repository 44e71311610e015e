"""Build a variant: every tensor of a plan, merged and checked, into buffers of the caller."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Final

import torch

from merging.checkpoint import Progress
from merging.errors import MergingError, PlanError
from merging.operand import check_unchanged
from merging.pieces import Scratch
from merging.tensor_build import Phase, Shared, TensorBuild
from merging.thresholds import find_thresholds
from merging.trim_cache import TrimCache
from merging.variant import TensorPlan, VariantPlan
from merging.wording import grouped
from merging.workers import Task, Workers

LARGE: Final = 1 << 22
"""Elements from which on all workers share a tensor, if they can; others have a worker each."""

GROUP: Final = 1 << 20
"""Elements of small tensors that one task merges, about: to hand over a task takes as long as to
merge some 50 Ki elements.
"""

MAX_WORKERS: Final = 4
"""Beyond it memory is the limit, and not the cores."""


class BuildCancelled(Exception):
    """The caller wanted no more of it; the buffers are in no particular state."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. `seconds`: in all. `phase_seconds`: of all threads together.

    `num_bytes`: written. `changes`: ||merged - W0|| / ||W0|| by tensor; None where the method has
    no base, or W0 is zero.
    """

    seconds: float
    phase_seconds: Mapping[Phase, float]
    num_bytes: int
    changes: Mapping[str, float | None]


def build(
    plan: VariantPlan,
    out: Callable[[str], torch.Tensor],
    *,
    cache: TrimCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    num_workers: int | None = None,
) -> BuildReport:
    """Merge every tensor of the plan into the tensor that `out` gives for its name.

    `out` and `progress` (bytes written, bytes in all) are called on the caller's thread. The result
    does not depend on the number of workers, nor on the cache. A tensor of `out` is of the result's
    dtype and may be non-contiguous.

    Memory: a worker has buffers of 1 MiB for each source and a few more. Trims that the cache
    lacks take one delta in float32 and what their method makes of it for each worker; methods that
    must see a whole tensor (`pointwise` is false) its base, all its deltas, and what they make of
    them. Workers share a tensor from 4 Mi elements on, and such a tensor is then the only one; if
    it must be seen whole, one worker merges it, while others merge smaller ones.

    Raises PlanError with every reason, led by the names of tensors: what is missing, has another
    shape, is not finite, or is of a file that changed, and in which source; SourceError if files
    changed by the end; BuildCancelled once `cancelled` says so.
    """
    start = perf_counter()
    build = _Build(plan, out, cache, progress or (lambda done, total: None), cancelled)
    with Workers(num_workers or default_workers()) as workers:
        return build.run(workers, start)


def default_workers() -> int:
    """One for each core that this process may use, up to a few."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


class _Build:
    def __init__(
        self,
        plan: VariantPlan,
        out: Callable[[str], torch.Tensor],
        cache: TrimCache | None,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self._plan, self._out, self._cache = plan, out, cache
        self._progress, self._cancelled = progress, cancelled
        self._scratch = Scratch()
        self._builds: list[TensorBuild] = []
        self._seconds: dict[Phase, float] = {}
        self._lock = Lock()
        self._total = plan.num_bytes
        self._done = 0

    def run(self, workers: Workers, start: float) -> BuildReport:
        """Do all of it: first what all workers share, then the rest."""
        tensors, scratch = self._plan.tensors, self._scratch
        self._progress(0, self._total)
        run = partial(self._run, workers, "threshold")
        thresholds = find_thresholds(self._plan, self._cache, scratch, run)
        shared = Shared(self._plan, self._cache, scratch, thresholds)
        large = [tensor for tensor in tensors if math.prod(tensor.shape) >= LARGE]
        groups = list(grouped_by_size([t for t in tensors if math.prod(t.shape) < LARGE]))
        if self._plan.method.in_pieces:
            for tensor in large:
                self._together(workers, self._start(shared, tensor))
        else:
            groups.insert(0, large)  # one worker for them, as each needs memory for all of it
        builds = ([self._start(shared, tensor) for tensor in group] for group in groups)
        for _ in workers.run(map(self._alone, builds)):
            self._progress(self._done, self._total)
        self._raise_problems()
        check_unchanged(self._plan)
        return BuildReport(
            seconds=perf_counter() - start,
            phase_seconds=dict(self._seconds),
            num_bytes=self._done,
            changes={build.tensor.name: build.change for build in self._builds},
        )

    def _start(self, shared: Shared, tensor: TensorPlan) -> TensorBuild:
        build = TensorBuild(shared, tensor, self._out(tensor.name))
        self._builds.append(build)
        return build

    def _together(self, workers: Workers, build: TensorBuild) -> None:
        for phase, tasks in build.steps():
            self._run(workers, phase, [partial(self._noted, build, task) for task in tasks])
        self._written(build)
        self._progress(self._done, self._total)

    def _run(self, workers: Workers, phase: Phase, tasks: list[Task]) -> None:
        for _ in workers.run(partial(self._timed, phase, task) for task in tasks):
            pass

    def _alone(self, builds: Sequence[TensorBuild]) -> Task:
        def task() -> None:
            for build in builds:
                for phase, tasks in build.steps():
                    for each in tasks:
                        self._timed(phase, partial(self._noted, build, each))
                self._written(build)

        return task

    def _noted(self, build: TensorBuild, task: Task) -> None:
        try:
            task()
        except MergingError as error:  # maybe what another task of the tensor met with
            build.problems += [r for r in error.reasons if r not in build.problems]

    def _timed(self, phase: Phase, task: Task) -> None:
        if self._cancelled():
            raise BuildCancelled
        start = perf_counter()
        with torch.no_grad():
            task()
        with self._lock:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + perf_counter() - start

    def _written(self, build: TensorBuild) -> None:
        with self._lock:
            self._done += build.target.nbytes

    def _raise_problems(self) -> None:
        problems = {build.tensor.name: build.problems for build in self._builds}
        reasons = grouped(
            (tensor.name, problem)
            for tensor in self._plan.tensors
            for problem in problems[tensor.name]
        )
        if reasons:
            raise PlanError(reasons)


def grouped_by_size(tensors: Sequence[TensorPlan]) -> Iterator[list[TensorPlan]]:
    """The tensors in their order, in groups that have GROUP elements or end the list."""
    group: list[TensorPlan] = []
    num_elements = 0
    for tensor in tensors:
        group.append(tensor)
        num_elements += math.prod(tensor.shape)
        if num_elements >= GROUP:
            yield group
            group, num_elements = [], 0
    if group:
        yield group
