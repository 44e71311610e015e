"""Variants for everybody who needs one: built once, on a thread of their own, and kept."""

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

from merging.plan import Plan
from merging.variant import VariantPlan
from server.engine.variant import Variant
from server.errors import ServiceError, UnprocessableError
from server.presets.admission import Admission, draining
from server.presets.failures import Failures, forget_frames
from server.presets.jobs import IsWaiting, Job, check_queue
from server.presets.observer import NullVariantObserver, VariantObserver
from server.presets.packer import Packer
from server.presets.shelf import Built, Need, NoCache, Shelf
from server.presets.workshop import BuildError, Workshop

logger = logging.getLogger(__name__)

VariantState = Literal["ready", "building", "cold", "failed"]


class Variants:
    """Built variants by digest: equal digests are one variant, whoever uses it.

    `budget` bounds the bytes of all that are kept, caches of the builds included. Variants that
    are not there are built when they are asked for; all who ask for one wait for the same build.
    """

    def __init__(
        self,
        workshop: Workshop | None = None,
        budget: int = 0,
        observer: VariantObserver | None = None,
    ) -> None:
        """Without a `workshop` the budget must be 0: then every variant is refused."""
        self._workshop = workshop
        self._observer = observer or NullVariantObserver()
        self._shelf = Shelf(budget, workshop.cache if workshop else NoCache())
        self._lock = threading.Lock()
        self._admission = Admission(self._shelf, self._lock, workshop)
        self._jobs: dict[str, Job] = {}
        self._failures = Failures()
        self._closing = threading.Event()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="variant-builder")
        self._observer.watch_leaving(lambda: self._shelf.leaving_bytes)
        self._packer = Packer(self._is_kept, lambda: bool(self._jobs))

    # Asking

    def ask(self, plan: Plan, is_waiting: IsWaiting = lambda: True) -> Future[Variant]:
        """The variant of a plan, now or later: a request needs it, while `is_waiting`.

        The future is shared: do not cancel it. What cannot be built fails with BuildError, at once
        where that is known; UnavailableError where too many builds wait already.
        """
        wanted = variant_plan(plan)
        with self._lock:
            built = self._shelf.find(wanted.digest)
            if built is not None:
                self._packer.used(built.variant)
                return _done(built.variant)
            self._observer.cold_hit()
            reasons = self._failures.recent(wanted.digest)
            if reasons is not None:
                raise BuildError(reasons)
            return self._start(wanted, is_waiting=is_waiting)

    def check_all(self, plans: Sequence[Plan], replacing: Collection[str] = ()) -> None:
        """BuildError if the variants that one request runs together can never be kept together,
        beside the pinned ones but these.
        """
        wanted = {plan.variant.digest: plan.variant for plan in plans if plan.variant is not None}
        if len(wanted) < 2:
            return  # one is checked when it is built
        with self._lock:
            self._admission.check_all(list(wanted.values()), replacing)

    def check_spare(self, plans: Sequence[Plan]) -> None:
        """UnprocessableError unless plans can be built in room that nothing else takes, and as much
        stays free for an edit: what is served never goes for them.
        """
        with self._lock:
            missing = {
                plan.variant.digest: self._admission.need(plan.variant).num_bytes
                for plan in plans
                if plan.variant is not None and plan.variant.digest not in self._shelf
            }
            crowding = self._shelf.spare_shortage(sum(missing.values()))
        if crowding is not None:
            raise UnprocessableError(crowding)

    @contextmanager
    def holding(
        self, plans: Sequence[Plan], old: Sequence[Plan] = (), replacing: Collection[str] = ()
    ) -> Iterator[None]:
        """Build the variants of plans, those that are some, and keep them until the block ends.

        An edit publishes in the block. What it replaces, `old`, is kept as long: it serves
        meanwhile. `replacing`: pinned variants whose place they take. Raises BuildError with every
        reason.
        """
        digests = [plan.variant.digest for plan in (*plans, *old) if plan.variant is not None]
        with self._lock:
            for digest in digests:
                self._shelf.hold(digest)
        try:
            for plan in plans:
                self.build(plan, replacing)
            yield
        finally:
            with self._lock:
                self._shelf.release(digests)
                self._report()

    def build(self, plan: Plan, replacing: Collection[str] = ()) -> None:
        """Build the variant of a plan, if it is one and is not there, and wait for it."""
        if plan.variant is None:
            return
        with self._lock:
            if plan.variant.digest in self._shelf:
                return
            job = self._start(plan.variant, replacing)
        job.result()

    def check(self, plans: Sequence[Plan], replacing: Collection[str] = ()) -> None:
        """BuildError if the variants of plans, those that are some, can never be kept, alone or
        together.
        """
        self.check_all(plans, replacing)
        with self._lock:
            for plan in plans:
                if plan.variant is not None:
                    self._admission.check(plan.variant, replacing)

    def check_pinned(self, after: Collection[VariantPlan], before: Collection[VariantPlan]) -> None:
        """BuildError if the variants `after` cannot all be pinned.

        `before` are those that are now: what takes no more than they is not refused.
        """
        needs = ({p.digest: self._admission.need(p) for p in plans} for plans in (after, before))
        with self._lock:
            shortage = self._shelf.pinned_shortage(*needs)
        if shortage is not None:
            raise BuildError([shortage])

    def serve(self, used: Collection[str], pinned: Collection[str]) -> None:
        """Take note of the digests that presets and sources serve now, and of the pinned ones."""
        with self._lock:
            self._shelf.serve(used, pinned)
            self._report()

    # Telling

    def state(self, digest: str) -> tuple[VariantState, tuple[str, ...]]:
        """Where a variant stands, and why it could not be built."""
        with self._lock:
            if digest in self._shelf:
                return "ready", ()
            if digest in self._jobs:
                return "building", ()
            reasons = self._failures.recent(digest)
        return ("cold", ()) if reasons is None else ("failed", reasons)

    def built(self, digest: str) -> Built | None:
        """A variant that is there, with how it was built."""
        with self._lock:
            return self._shelf.peek(digest)

    @property
    def num_bytes(self) -> int:
        """Bytes of all variants that are kept."""
        with self._lock:
            return self._shelf.num_bytes

    def kv_bytes(self, plan: Plan) -> int:
        """What a plan takes at most for keys and values, beyond the base's."""
        return 0 if plan.variant is None else self._admission.need(plan.variant).kv

    def close(self) -> None:
        """Give up what is building, and stop."""
        self._closing.set()
        self._packer.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            jobs = list(self._jobs.values())
            self._jobs.clear()
        for job in jobs:  # those that were not begun
            job.future.set_exception(draining())

    # Building

    def _start(
        self,
        plan: VariantPlan,
        replacing: Collection[str] = (),
        is_waiting: IsWaiting | None = None,
    ) -> Future[Variant]:
        """The build that is under way, or a new one: an edit's, without `is_waiting`. Locked."""
        job = self._jobs.get(plan.digest)
        if self._closing.is_set():
            raise draining()
        if job is None:
            self._admission.check(plan, replacing)
            if is_waiting is not None:
                check_queue(self._jobs.values())
            job = self._jobs[plan.digest] = Job()
            self._executor.submit(self._run, plan, replacing, job)
        job.join(is_waiting)
        return job.future

    def _run(self, plan: VariantPlan, replacing: Collection[str], job: Job) -> None:
        def admit(need: Need) -> None:
            self._admission.wait(plan, replacing, need, self._closing)
            with self._lock:
                self._report()

        if not self._begin(plan, job):
            return
        assert self._workshop is not None, "without a workshop there is no room for a variant"
        try:
            built = self._workshop.build(plan, admit, self._closing.is_set)
        except BaseException as error:
            self._fail(plan, job, error)
            return
        with self._lock:
            self._shelf.put(built, yielding=job.for_edit)
            self._failures.forget(plan.digest)
            del self._jobs[plan.digest]
            self._report()
        self._observer.variant_built(built.method, "built", built.seconds_by_phase)
        job.future.set_result(built.variant)

    def _begin(self, plan: VariantPlan, job: Job) -> bool:
        """Whether a build whose turn it is begins: not if all who asked for it gave up."""
        with self._lock:
            if job.begin():
                return True
            del self._jobs[plan.digest]
        job.future.cancel()
        return False

    def _fail(self, plan: VariantPlan, job: Job, error: BaseException) -> None:
        with self._lock:
            del self._jobs[plan.digest]
            if isinstance(error, BuildError):
                self._failures.note(plan.digest, error.reasons)
            self._report()
        if not isinstance(error, ServiceError):
            logger.error("a variant could not be built", exc_info=error)
        forget_frames(error)
        outcome = "refused" if isinstance(error, BuildError) else "failed"
        self._observer.variant_built(plan.method.name, outcome, {})
        job.future.set_exception(error)

    def _is_kept(self, variant: Variant) -> bool:
        with self._lock:
            built = self._shelf.peek(variant.digest)
            return built is not None and built.variant is variant

    def _report(self) -> None:
        """Tell the observer what is kept. Called with the lock."""
        shelf = self._shelf
        evicted, shelf.num_evicted = shelf.num_evicted, 0
        kv_bytes = sum(built.variant.kv_bytes for built in shelf)
        self._observer.variants_changed(
            len(shelf), shelf.num_bytes - kv_bytes, kv_bytes, shelf.cache.num_bytes, evicted
        )


def variant_plan(plan: Plan) -> VariantPlan:
    """The plan's variant, which it must have."""
    assert plan.variant is not None, "a blend is not built"
    return plan.variant


def _done(variant: Variant) -> Future[Variant]:
    future: Future[Variant] = Future()
    future.set_result(variant)
    return future
