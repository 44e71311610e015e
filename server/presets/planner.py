"""From documents to plans: finds the sources, and turns refusals into the caller's errors."""

from collections.abc import Callable, Iterable, Mapping

from merging.adapter import Adapter
from merging.base import Base
from merging.checkpoint_weights import CheckpointWeights
from merging.core_bases import CoreBases
from merging.digest import canonical_json
from merging.errors import MergingError, PlanError, RecipeError
from merging.gram import GramCache
from merging.layout import Layouts
from merging.models import Source as Content
from merging.plan import Plan, plan, source_reasons
from merging.recipe import BASE, Recipe
from merging.source import Weights
from server.errors import InvalidRequestError, UnprocessableError
from server.presets.document import PresetDocument
from server.presets.recent import Recent
from server.presets.sources import Source
from server.presets.twin import make_twin

NUM_RECENT = 64
"""Plans that are remembered: requests that override weights repeat."""

RECENT_BYTES = 1 << 28
"""What they may keep in memory beside the sources."""


class Planner:
    """Compiles recipes for one base, and remembers the plans that were asked for last.

    `resident` are the base's own tensors; without them only blends of adapters are planned.
    """

    def __init__(self, base: Base, resident: Weights | None = None) -> None:
        self.base = base
        self._resident = resident
        self._gram = GramCache()
        self._bases = CoreBases()
        self._layouts = Layouts(base, None if resident is None else resident.shapes)
        self._recent: Recent[tuple[str, ...], Plan] = Recent(
            NUM_RECENT, max_bytes=RECENT_BYTES, num_bytes=lambda made: made.own_bytes
        )

    def plan(
        self,
        recipe: Recipe,
        contents: Mapping[str, Content],
        unusable: Mapping[str, str] | None = None,
    ) -> Plan:
        """Compile a recipe; UnprocessableError with every reason.

        `contents` are by source name; `unusable` says of sources without one why they have none.
        """
        used = sorted(recipe.models & contents.keys())
        # By object: equal checkpoints are read from files of their own, which may go one by one.
        objects = (f"{name}={contents[name].digest} {id(contents[name])}" for name in used)
        key = (canonical_json(recipe.model_dump(mode="json")), *objects)
        try:
            return self._recent.get(
                key,
                lambda: plan(
                    recipe,
                    contents,
                    self.base,
                    unusable,
                    weights=self._resident,
                    gram=self._gram,
                    bases=self._bases,
                    layouts=self._layouts,
                ),
            )
        except PlanError as error:
            raise UnprocessableError(f"cannot be built: {error}", param=_field(error)) from error

    def plan_present(
        self, make: Callable[[], Recipe], names: Iterable[str], sources: Mapping[str, Source]
    ) -> Plan:
        """Compile the recipe that `make` makes, from the present content of its sources.

        `names` are those of its sources, should it be malformed.
        """
        contents = {name: s.content for name, s in sources.items() if s.content is not None}
        unusable = {name: "; ".join(s.reasons) for name, s in sources.items() if s.content is None}
        try:
            recipe = make()
        except RecipeError as error:
            reasons = [*error.reasons, *source_reasons(names, contents, unusable)]
            raise _malformed(RecipeError(reasons)) from error
        return self.plan(recipe, contents, unusable)

    def plan_document(self, document: PresetDocument, sources: Mapping[str, Source]) -> Plan:
        """Compile a preset from the present content of its sources. Its recipe must be one that
        could be merged also where it runs as an ensemble, whose twin it must have then.
        """
        plan = self.plan_present(document.recipe, used_sources(document), sources)
        if document.mode == "ensemble":
            make_twin(document.ensemble, plan, document.base_model)
        return plan

    def plan_source(self, name: str, content: Content) -> Plan:
        """Compile a source alone: an adapter at weight 1, a checkpoint as it is."""
        recipe = Recipe(method="task_arithmetic", sources={name: {"weight": 1.0}})
        if not isinstance(content, Adapter):
            is_other = isinstance(content, CheckpointWeights) and content.vocabulary is not None
            align = BASE if is_other else None  # the tokens that it gets are the base's
            recipe = Recipe(method="passthrough", sources={name: {}}, tokenizer_source=align)
        return self.plan(recipe, {name: content})

    def forget(self, digest: str) -> None:
        """Forget the plans of a content."""
        self._recent.drop(
            lambda plan: any(content.digest == digest for content in plan.sources.values())
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


def used_sources(document: PresetDocument) -> frozenset[str]:
    """The names of the sources that a document uses, well-formed or not."""
    slices = document.slices if isinstance(document.slices, list) else []
    bases = [document.base_model, *(s.get("base_model") for s in slices if isinstance(s, dict))]
    names = {name for name in bases if isinstance(name, str)}
    return frozenset({*document.sources, *names}) - {BASE}
