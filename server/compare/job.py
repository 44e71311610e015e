"""What is to be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.compare.candidate import Candidate, Probe
from server.compare.case import Case
from server.compare.findings import Terms
from server.engine.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be compared. `sampling` is every candidate's; its seed is that of the first
    prompt, and the next one's is one more.
    """

    terms: Terms
    cases: Sequence[Case]
    candidates: Sequence[Candidate]
    probes: Sequence[Probe]
    sampling: SamplingParams
