"""What candidates are made of, in words, so that a report says what it compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.concurrency import run_in_threadpool

from merging.methods import METHODS
from merging.recipe import METHOD
from server.api.compare_candidates import Lineup
from server.api.compare_schemas import CompareBody
from server.api.service import Service
from server.compare.about import About
from server.compare.candidate import Candidate
from server.presets.document import PresetDocument
from server.presets.served import Overrides, Served

MAX_SHOWN = 60
"""Characters of one setting; a list of filters may be long."""


async def identify(service: Service, lineup: Lineup, body: CompareBody, created: int) -> About:
    """Say of every candidate what it is made of, and of the whole where it comes from."""
    lineup.candidates = await run_in_threadpool(  # old revisions are in the database
        lambda: [_made_of(service, lineup, body, i) for i in range(len(lineup.candidates))]
    )
    labels = (c.served.label for c in lineup.candidates if c.role in ("merge", "ensemble"))
    return About(
        preset=None if body.model is None else next(labels, body.model),
        base=service.catalog.base.name,
        base_digest=service.catalog.base.digest,
        created=created,
        prompts_digest=await run_in_threadpool(lambda: body.prompts_digest),
        prompts_file=body.prompts_file,
    )


def _made_of(service: Service, lineup: Lineup, body: CompareBody, index: int) -> Candidate:
    candidate = lineup.candidates[index]
    served = candidate.served
    by_prompt = (item.overrides for item in lineup.by_prompt if item.served is served)
    overrides = next(by_prompt, body.overrides_of(index))
    document = None
    if served.preset is not None:
        document = service.catalog.preset(served.preset, served.revision).document
    return dataclasses.replace(
        candidate,
        recipe=describe(served, document, overrides),
        sources=held_sources(document, overrides),
    )


def describe(served: Served, document: PresetDocument | None, overrides: Overrides) -> str:
    """`task_arithmetic: sql 0.5, json 0.9`; for an ensemble its rule and its coefficients."""
    if overrides.auto is not None:
        how = "each prompt's own source" if overrides.auto == "route" else "weights by prompt"
        return f"{how}, of {', '.join(document.sources if document else ())}"
    if served.combination is not None:
        rows = (f"{name} {c:g}" for name, c in served.combination.coefficients.items())
        return f"{served.combination.rule} of {', '.join(rows)}"
    if document is None and overrides.recipe is None:
        return ""
    method, sources, parameters = _parts(document, overrides)
    more = [f"{name} {_shown(value)}" for name, value in parameters.items()]
    more += ["slices"] if document is not None and document.slices else []
    said = [f"{name}{_source(settings)}" for name, settings in sources.items()]
    return f"{method}: {', '.join([*said, *more]) or 'no sources'}"


def held_sources(document: PresetDocument | None, overrides: Overrides) -> tuple[str, ...]:
    """The sources that a candidate holds with a weight above 0 somewhere, so that it can be asked
    to do what they do.
    """
    if document is None and overrides.recipe is None:
        return ()
    method, sources, _ = _parts(document, overrides)
    known = METHODS.get(method)
    if known is None or known.parameter("weight") is None:
        return tuple(sources)
    return tuple(name for name, own in sources.items() if _is_positive(own.get("weight", 1.0)))


def _parts(
    document: PresetDocument | None, overrides: Overrides
) -> tuple[str, Mapping[str, Mapping[str, Any]], Mapping[str, Any]]:
    """Method, settings by source, and parameters, with the request's weights."""
    recipe: Mapping[str, Any] = overrides.recipe or {}
    if document is not None:
        recipe = document.model_dump(include={"method", "sources", "parameters"})
    sources = recipe.get("sources") or {}
    given = overrides.weights or {}
    own = {
        name: {**settings, "weight": given[name]} if name in given else settings
        for name, settings in sources.items()
    }
    return recipe.get("method") or METHOD, own, recipe.get("parameters") or {}


def _source(settings: Mapping[str, Any]) -> str:
    rest = [f"{name} {_shown(value)}" for name, value in settings.items() if name != "weight"]
    weight = f" {_shown(settings['weight'])}" if "weight" in settings else ""
    return weight + (f" ({', '.join(rest)})" if rest else "")


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        text = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, Mapping):  # {filter: mlp, value: 0.3}
        text = " ".join(_shown(item) for item in value.values())
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}\N{HORIZONTAL ELLIPSIS}"


def _is_positive(setting: object) -> bool:
    """Whether a number, one of a gradient or one of several filters is above 0."""
    if isinstance(setting, Mapping):
        return _is_positive(setting.get("value"))
    if isinstance(setting, Sequence) and not isinstance(setting, str):
        return any(map(_is_positive, setting))
    return isinstance(setting, int | float) and setting > 0
