"""Threads that compute side by side, each alone: their operations start no threads."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType

import torch

Task = Callable[[], None]


class Workers:
    """A few threads, for as long as it is entered."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool = ThreadPoolExecutor(num_workers, "merge", initializer=compute_alone)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, tasks: Iterable[Task]) -> Iterator[None]:
        """Do all tasks, in any order; yields after each, on the caller's thread.

        Tasks are taken from the iterable as threads become free. Raises what the first that fails
        raised; the others that were started are ended first when the workers are left.
        """
        done: SimpleQueue[Future[None]] = SimpleQueue()  # `wait` takes ten times as long
        num_pending = 0
        remaining = iter(tasks)
        while True:
            while num_pending < self.num_workers + 1 and (task := next(remaining, None)):
                self._pool.submit(task).add_done_callback(done.put)
                num_pending += 1
            if not num_pending:
                return
            done.get().result()
            num_pending -= 1
            yield


def compute_alone() -> None:
    """Make the calling thread do its OpenMP regions alone.

    `torch.set_num_threads` would change all threads of the process. OpenMP's own setting belongs to
    the thread that calls it. Without it every BLAS call and every operation on a large tensor waits
    for helper threads, and they for a core: milliseconds where another thread is serving.
    """
    torch.get_num_threads()  # sets OpenMP's default for this thread, which must not come later
    for library in _openmp_libraries():
        ctypes.CDLL(library).omp_set_num_threads(1)


def _openmp_libraries() -> set[str]:
    try:
        with open("/proc/self/maps") as maps:
            files = {line.rstrip().split(maxsplit=5)[-1] for line in maps}
    except OSError:
        return set()  # not Linux: right all the same, only slower
    kinds = ("libgomp", "libiomp", "libomp")
    return {path for path in files if os.path.basename(path).startswith(kinds)}
