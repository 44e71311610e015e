"""What a merge is, in lines of names and values: its base, sources, weights, parameters, date."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from merging.recipe import BASE
from server.offline.card import published_names
from server.offline.opening import OpenMerge

Fact = tuple[str, str]


def merge_facts(merge: OpenMerge, *, public: bool = False) -> list[Fact]:
    """The facts. A `public` list calls models by hub ids and names, not by paths of this machine.

    Of the recipe as it stands in the file: what a preset or slice says of layers is not taken
    apart.
    """
    recipe, plan = merge.recipe, merge.plan
    spelled = {BASE: merge.base.spelling, **merge.spellings}
    names: Mapping[str, str] = published_names(merge) if public else spelled
    facts = [("base", f"{names[BASE]}, {merge.base.base.digest}"), ("method", recipe.method)]
    for name in sorted(plan.sources):
        settings = recipe.model_dump(mode="json")["sources"].get(name) or {}
        called = names.get(name, name)
        known = [text for text in (called if called != name else "", _settings(settings)) if text]
        facts.append((f"source {name}", ", ".join(known) or "-"))
    if parameters := _settings(recipe.model_dump(mode="json")["parameters"]):
        facts.append(("parameters", parameters))
    if recipe.slices is not None:
        facts.append(("slices", f"{len(recipe.slices)}, of layers"))
    facts += [("path", f"{plan.path}: {plan.reason}"), ("digest", plan.digest)]
    return [*facts, ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))]


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in settings.items())


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
