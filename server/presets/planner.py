"""From documents to plans: finds the sources, and turns refusals into the caller's errors."""

from collections.abc import Mapping

from merging.adapter import Adapter
from merging.base import Base
from merging.digest import canonical_json
from merging.errors import PlanError, RecipeError
from merging.plan import Plan, plan
from merging.recipe import BASE, Recipe
from server.errors import InvalidRequestError, UnprocessableError
from server.presets.document import PresetDocument
from server.presets.recent import Recent
from server.presets.sources import Source

NUM_RECENT = 64
"""Plans that are remembered: requests that override weights repeat."""


class Planner:
    """Compiles recipes for one base, and remembers the plans that were asked for last."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._recent: Recent[tuple[str, ...], Plan] = Recent(NUM_RECENT)

    def plan(self, recipe: Recipe, adapters: Mapping[str, Adapter]) -> Plan:
        """Compile a recipe; `adapters` are by source name. UnprocessableError with every reason."""
        digests = (f"{name}={adapters[name].digest}" for name in sorted(adapters))
        key = (canonical_json(recipe.model_dump(mode="json")), *digests)
        try:
            return self._recent.get(key, lambda: plan(recipe, adapters, self.base))
        except PlanError as error:
            raise UnprocessableError(f"cannot be built: {error}") from error

    def plan_document(self, document: PresetDocument, sources: Mapping[str, Source]) -> Plan:
        """Compile a preset from the present content of its sources."""
        if document.mode == "ensemble":
            raise ensembles_unavailable()
        recipe = parse_recipe(document)
        return self.plan(recipe, current_adapters(recipe, sources))

    def plan_source(self, source: Source) -> Plan:
        """Compile a source alone at weight 1."""
        recipe = Recipe(method="task_arithmetic", sources={source.name: {"weight": 1.0}})
        return self.plan(recipe, current_adapters(recipe, {source.name: source}))


def parse_recipe(document: PresetDocument) -> Recipe:
    """The document's recipe; InvalidRequestError with every reason."""
    try:
        return document.recipe()
    except RecipeError as error:
        raise invalid_recipe(error) from error


def invalid_recipe(error: RecipeError) -> InvalidRequestError:
    """The caller's error for a malformed recipe; `param` is the field of the first reason."""
    field, colon, _ = error.reasons[0].partition(": ")
    return InvalidRequestError(str(error), param=field if colon and " " not in field else None)


def ensembles_unavailable() -> UnprocessableError:
    """The refusal of logit ensembles."""
    return UnprocessableError(
        'mode "ensemble": ensembles are not available in this release; use mode "merge"',
        param="mode",
        code="ensemble_unavailable",
    )


def used_sources(document: PresetDocument) -> frozenset[str]:
    """The names of the sources that a document uses."""
    return frozenset(document.sources) - {BASE}


def current_adapters(recipe: Recipe, sources: Mapping[str, Source]) -> Mapping[str, Adapter]:
    """The recipe's adapters by name; UnprocessableError naming all that are unknown or unusable."""
    adapters, reasons = {}, []
    for name in sorted(recipe.sources.keys() - {BASE}):
        source = sources.get(name)
        if source is None:
            reasons.append(f"sources.{name}: there is no source {name!r}")
        elif source.adapter is None:
            reasons.append(f"sources.{name}: cannot be used: {'; '.join(source.reasons)}")
        else:
            adapters[name] = source.adapter
    if any(name not in sources for name in recipe.sources.keys() - {BASE}):
        reasons.append(f"registered sources are: {', '.join(sorted(sources)) or 'none'}")
    if reasons:
        raise UnprocessableError("; ".join(reasons), param="sources")
    return adapters
