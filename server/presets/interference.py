"""The interference report: how the sources of a merge agree, tensor group by tensor group."""

import threading

from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from merging.errors import MergingError
from merging.plan import Plan
from merging.plan_diagnosis import diagnose_plan
from merging.source import Weights
from server.errors import UnprocessableError
from server.presets.recent import Recent

NUM_REPORTS = 16


class Interference:
    """Makes reports one at a time, each a pass over all tensors, and remembers the last ones."""

    def __init__(self, resident: Weights | None) -> None:
        """`resident`: the base's own tensors, without which there is no report."""
        self._resident = resident
        self._lock = threading.Lock()
        self._recent: Recent[str, dict[str, JsonValue]] = Recent(NUM_REPORTS)

    def report(self, plan: Plan) -> dict[str, JsonValue]:
        """The report of a plan; UnprocessableError with every reason why there is none."""
        with self._lock:
            return self._recent.get(plan.digest, lambda: self._make(plan))

    def _make(self, plan: Plan) -> dict[str, JsonValue]:
        if self._resident is None:
            raise UnprocessableError("interference: the base's files are not at hand")
        try:
            report: dict[str, JsonValue] = to_jsonable_python(diagnose_plan(plan, self._resident))
        except MergingError as error:
            raise UnprocessableError(f"interference: {error}") from error
        return report
