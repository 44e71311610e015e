"""Which candidates a comparison has."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fastapi.concurrency import run_in_threadpool

from server.api.compare_schemas import CompareBody
from server.api.compare_voices import ByPrompt, rows_of
from server.api.service import Service
from server.compare.candidate import Candidate, Probe, Role
from server.errors import (
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    ServiceError,
    UnavailableError,
    UnprocessableError,
)
from server.presets.ensemble_settings import EnsembleSettings
from server.presets.names import parse_model_string
from server.presets.record import PresetRecord
from server.presets.served import Overrides, Served

NOT_SERVED = (ForbiddenError, InvalidRequestError, NotFoundError, UnprocessableError)
"""What makes a default candidate, or a probe, be left out, with a note that says so. A probe, which
nobody asked for, is not worth a refusal either where there is no room for its weights now.
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A candidate before it is resolved."""

    name: str
    role: Role
    model: str
    overrides: Overrides | None = None


@dataclass(slots=True)
class Lineup:
    """Who is compared, who explains it, and what was left out."""

    candidates: list[Candidate]
    reference: int
    probes: list[Probe] = field(default_factory=list)
    by_prompt: list[ByPrompt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def line_up(service: Service, body: CompareBody) -> Lineup:
    """Resolve every candidate: all are pinned to what they mean now."""
    if body.candidates is None:
        assert body.model is not None
        lineup = await _of_preset(service, body.model)
    else:
        lineup = await _named(service, body)
    lineup.reference = _reference(body, lineup)
    reference = lineup.candidates[lineup.reference]
    if body.candidates is None and body.reference is None and reference.role != "ensemble":
        lineup.notes.insert(
            0,
            f"all are held against {reference.name}, not against the ensemble, which is not "
            "compared: name a reference to choose another",
        )
    return lineup


async def _named(service: Service, body: CompareBody) -> Lineup:
    """The candidates of the request; one that is wrong is an error that names it."""
    assert body.candidates is not None
    lineup = Lineup([], 0)
    names = _unique([item.name or item.model for item in body.candidates])
    for index, (item, name) in enumerate(zip(body.candidates, names, strict=True)):
        overrides = None if item.mergeserve is None else item.mergeserve.overrides()
        try:
            served = await _resolve(service, lineup, item.model, overrides)
        except ServiceError as error:
            error.message = f"candidates[{index}]: {error.message}"
            error.param = f"candidates[{index}]"
            raise
        lineup.candidates.append(Candidate(name, _role(service, served), served))
    return lineup


async def _resolve(
    service: Service, lineup: Lineup, model: str, overrides: Overrides | None
) -> Served:
    """What a candidate is pinned to. Where each prompt chooses the weights, what it would be
    without that stands for it, at the same revision.
    """
    if overrides is None or overrides.auto is None:
        return await service.resolve(model, overrides)
    plain = dataclasses.replace(overrides, auto=None, weights_temperature=None)
    served = await service.resolve(model, plain)
    if served.preset is not None:
        model = f"{served.label}:{served.mode}"
        overrides = dataclasses.replace(overrides, mode=None)
    rows = rows_of((await service.weighing(model, overrides)).sources)
    if overrides.auto != "route":
        even = dict.fromkeys((source.name for source in rows), 1.0 / len(rows))
        chosen = dataclasses.replace(overrides, auto=None, weights_temperature=None, weights=even)
        is_merge = served.mode == "merge"
        rows = frozenset() if is_merge else rows_of((await service.resolve(model, chosen)).members)
    lineup.by_prompt.append(ByPrompt(served, model, overrides, rows))
    return served


async def _of_preset(service: Service, model: str) -> Lineup:
    """The base, the sources, the merge, the ensemble, the route and the previous revision."""
    parsed = parse_model_string(model)
    if parsed.mode is not None:
        raise InvalidRequestError(
            f"model: {model!r} names one mode, and both are compared: leave it out, or name "
            "candidates",
            param="model",
        )
    known = {record.name for record in service.catalog.presets()}
    if parsed.name not in known:
        await service.resolve(model, None)  # unknown altogether: the usual error
        raise InvalidRequestError(
            f"model: {model!r} is no preset, and has no parts to compare: name candidates",
            param="model",
        )
    served = await service.resolve(model, None)
    parts = _parts(service, parsed.name, served.revision)
    lineup = Lineup([], 0)
    for wanted in await run_in_threadpool(list, parts):  # old revisions are in the database
        # Weights that only it needs are built for it; where that takes too long it is left out.
        optional = (*NOT_SERVED, UnavailableError) if wanted.role == "previous" else NOT_SERVED
        try:
            found = await _resolve(service, lineup, wanted.model, wanted.overrides)
        except optional as error:
            lineup.notes.append(f"{wanted.name} is not compared: {error.message}")
        else:
            lineup.candidates.append(Candidate(wanted.name, wanted.role, found))
    return lineup


def _parts(service: Service, name: str, revision: int | None) -> Iterator[Wanted]:
    record = service.catalog.preset(name, revision)
    yield Wanted("base", "base", "base")
    for source in record.document.sources:
        yield Wanted(source, "source", source)
    yield Wanted("merge", "merge", f"{record.label}:merge")
    ensemble = f"{record.label}:ensemble"
    yield Wanted("ensemble", "ensemble", ensemble)
    if len(record.document.sources) > 1:
        yield Wanted("route", "route", ensemble, Overrides(auto="route"))
    previous = _previous(service, record)
    if previous is not None:
        yield Wanted(previous.label, "previous", previous.label)


def _previous(service: Service, record: PresetRecord) -> PresetRecord | None:
    """The last revision before this one that serves something else."""
    return next(
        (
            older
            for older in service.catalog.revisions(record.name)
            if older.revision < record.revision and older.state != "failed"
            if _answers_by(older) != _answers_by(record)
        ),
        None,
    )


def _answers_by(record: PresetRecord) -> tuple[str, EnsembleSettings | None]:
    """All of a revision that its answers hang on: the weights and, of an ensemble, how they are
    combined. Sampling is the comparison's own.
    """
    document = record.document
    return record.digest, document.ensemble if document.mode == "ensemble" else None


def _role(service: Service, served: Served) -> Role:
    """A source by itself is one that tags can have as their specialist."""
    if served.preset is not None or served.mode == "ensemble":
        return "candidate"
    if served.path == "base":
        return "base"
    return (
        "source" if any(s.name == served.model for s in service.catalog.sources()) else "candidate"
    )


def _reference(body: CompareBody, lineup: Lineup) -> int:
    """By index or name; else the ensemble where a preset's parts are compared, else the first."""
    names = [candidate.name for candidate in lineup.candidates]
    given = body.reference
    if isinstance(given, int):
        if given >= len(names):
            raise InvalidRequestError(
                f"reference is {given}, and there are {len(names)} candidates, counted from 0: "
                f"{', '.join(names)}",
                param="reference",
            )
        return given
    if isinstance(given, str):
        if given not in names:
            raise InvalidRequestError(
                f"reference: no candidate is called {given!r}; there are {', '.join(names)}",
                param="reference",
            )
        return names.index(given)
    roles = [candidate.role for candidate in lineup.candidates]
    return roles.index("ensemble") if "ensemble" in roles else 0


def _unique(names: Sequence[str]) -> list[str]:
    """Names told apart by a number where they are the same."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found.append(unique)
    return found
