"""From documents to plans: finds the sources, and turns refusals into the caller's errors."""

from collections.abc import Callable, Iterable, Mapping

from merging.adapter import Adapter
from merging.base import Base
from merging.digest import canonical_json
from merging.errors import MergingError, PlanError, RecipeError
from merging.plan import Plan, plan, source_reasons
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

    def plan(
        self,
        recipe: Recipe,
        adapters: Mapping[str, Adapter],
        unusable: Mapping[str, str] | None = None,
    ) -> Plan:
        """Compile a recipe; UnprocessableError with every reason.

        `adapters` are by source name; `unusable` says of sources without one why they have none.
        """
        used = sorted(recipe.sources.keys() & adapters.keys())
        digests = (f"{name}={adapters[name].digest}" for name in used)
        key = (canonical_json(recipe.model_dump(mode="json")), *digests)
        try:
            return self._recent.get(key, lambda: plan(recipe, adapters, self.base, unusable))
        except PlanError as error:
            raise UnprocessableError(f"cannot be built: {error}", param=_field(error)) from error

    def plan_present(
        self, make: Callable[[], Recipe], names: Iterable[str], sources: Mapping[str, Source]
    ) -> Plan:
        """Compile the recipe that `make` makes, from the present content of its sources.

        `names` are those of its sources, should it be malformed.
        """
        adapters = {name: s.adapter for name, s in sources.items() if s.adapter is not None}
        unusable = {name: "; ".join(s.reasons) for name, s in sources.items() if s.adapter is None}
        try:
            recipe = make()
        except RecipeError as error:
            reasons = [*error.reasons, *source_reasons(names, adapters, unusable)]
            raise _malformed(RecipeError(reasons)) from error
        return self.plan(recipe, adapters, unusable)

    def plan_document(self, document: PresetDocument, sources: Mapping[str, Source]) -> Plan:
        """Compile a preset from the present content of its sources."""
        if document.mode == "ensemble":
            raise ensembles_unavailable()
        return self.plan_present(document.recipe, document.sources, sources)

    def plan_source(self, name: str, adapter: Adapter) -> Plan:
        """Compile a source alone at weight 1."""
        recipe = Recipe(method="task_arithmetic", sources={name: {"weight": 1.0}})
        return self.plan(recipe, {name: adapter})

    def forget(self, digest: str) -> None:
        """Forget the plans of a content."""
        self._recent.drop(
            lambda plan: any(adapter.digest == digest for adapter in plan.adapters.values())
        )


def parse_recipe(document: PresetDocument) -> Recipe:
    """The document's recipe; InvalidRequestError with every reason."""
    try:
        return document.recipe()
    except RecipeError as error:
        raise _malformed(error) from error


def _malformed(error: RecipeError) -> InvalidRequestError:
    return InvalidRequestError(str(error), param=_field(error))


def _field(error: MergingError) -> str | None:
    """The field that the first reason is about."""
    field, colon, _ = error.reasons[0].partition(": ")
    return field if colon and " " not in field else None


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
