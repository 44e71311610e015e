"""The probes that explain candidates: they only read texts."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fastapi.concurrency import run_in_threadpool

from server.api.compare_candidates import NOT_SERVED, Lineup
from server.api.compare_schemas import CompareBody
from server.api.service import Service
from server.compare.candidate import Candidate, Probe
from server.errors import UnavailableError
from server.presets.record import PresetRecord
from server.presets.served import Overrides, Served


@dataclass(frozen=True, slots=True)
class WantedProbe:
    """A probe before it is resolved. `obstacle` says why there is none."""

    kind: Literal["twin", "without"]
    name: str
    model: str
    overrides: Overrides
    source: str | None = None
    obstacle: str | None = None


async def explain(service: Service, lineup: Lineup, subject: int, asked: CompareBody) -> None:
    """Add the twin of the subject, and subject and reference without each of their sources.

    What each prompt resolves anew has no parts that could be left out of all of them.
    """
    by_prompt = {id(item.served) for item in lineup.by_prompt}
    for index in dict.fromkeys((subject, lineup.reference)):
        candidate = lineup.candidates[index]
        if id(candidate.served) in by_prompt:
            continue
        refusals: dict[str, list[str]] = {}  # sources that could not be left out, by the reason
        wanted = _probes(service, candidate, asked.overrides_of(index))
        for probe in await run_in_threadpool(list, wanted):  # old revisions are in the database
            if probe.kind == "twin" and index != subject:
                continue
            if probe.obstacle is not None:
                refusals.setdefault(probe.obstacle, [])
                continue
            try:
                asked_by_us = dataclasses.replace(probe.overrides, is_probe=True)
                found = await service.resolve(probe.model, asked_by_us)
            except (*NOT_SERVED, UnavailableError) as error:
                refusals.setdefault(error.message, []).extend(filter(None, [probe.source]))
            else:
                lineup.probes.append(Probe(probe.kind, probe.name, index, found, probe.source))
        for refusal, sources in refusals.items():
            what = f", not without {' or '.join(sources)}" if sources else ""
            lineup.notes.append(f"{candidate.name} is explained in part only{what}: {refusal}")


def _probes(service: Service, candidate: Candidate, overrides: Overrides) -> Iterator[WantedProbe]:
    """What would explain a candidate: only presets have parts."""
    served = candidate.served
    if served.preset is None or overrides.recipe is not None:
        return
    record = service.catalog.preset(served.preset, served.revision)
    if served.mode == "merge":
        yield _twin(record, served, overrides)
    sources = record.document.sources
    for source in sources if len(sources) > 1 else ():
        weights = {**(overrides.weights or {}), source: 0.0}
        less = dataclasses.replace(overrides, mode=None, weights=weights)
        name = f"{candidate.name} without {source}"
        yield WantedProbe("without", name, f"{served.label}:{served.mode}", less, source)


def _twin(record: PresetRecord, served: Served, overrides: Overrides) -> WantedProbe:
    """The merge's own coefficients on logits, whatever else the preset's ensemble does."""
    twin = dataclasses.replace(
        overrides,
        mode=None,
        rule="task_arithmetic",
        temperature_order="after",
        plausibility_alpha=0.0,
    )
    members = record.document.ensemble.members
    obstacle = f"it has no twin, since its ensemble changes members ({', '.join(members)})"
    return WantedProbe(
        "twin",
        "the twin",
        f"{served.label}:ensemble",
        twin,
        obstacle=obstacle if members else None,
    )
