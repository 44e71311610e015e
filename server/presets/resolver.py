"""From a model string to the plan of the weights that a request is pinned to."""

from collections.abc import Mapping

from pydantic import JsonValue

from merging.plan import Plan, base_plan
from merging.recipe import Recipe
from server.errors import (
    ForbiddenError,
    InvalidRequestError,
    UnavailableError,
    UnprocessableError,
)
from server.presets.document import PresetDocument
from server.presets.kept_revisions import KeptRevisions
from server.presets.names import ModelString, is_base, model_not_found, parse_model_string
from server.presets.planner import Planner, ensembles_unavailable, parse_recipe
from server.presets.policy import Policy
from server.presets.record import PresetRecord
from server.presets.served import Overrides, Resolved
from server.presets.snapshot import Preset, Serving, Snapshot
from server.presets.sources import Source

MODES = ("merge", "ensemble")
LIST_MODELS = "GET /v1/models lists those that do."


class Resolver:
    """Resolves model strings on a snapshot, within what the policy lets callers do."""

    def __init__(self, planner: Planner, kept: KeptRevisions, policy: Policy) -> None:
        self._planner = planner
        self._kept = kept
        self._policy = policy
        self._base_plan = base_plan(planner.base)

    def resolve(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Resolved:
        """What `model` means now, with a request's overrides applied."""
        _check_overrides(overrides)
        if overrides.recipe is not None:
            return self._inline(snapshot, model, overrides.recipe, overrides)
        if is_base(model, self._planner.base):
            _only_merges(overrides, None, "the base")
            return Resolved(model, self._base_plan)
        parsed = parse_model_string(model)
        if preset := snapshot.presets.get(parsed.name):
            return self._preset(preset, model, parsed, overrides)
        if source := snapshot.sources.get(parsed.name):
            return self._source(source, model, parsed, overrides)
        if is_base(parsed.name, self._planner.base):
            raise model_not_found(model, "The base has no revisions and no modes.")
        raise model_not_found(model, LIST_MODELS)

    def serving(self, preset: Preset, revision: int | None) -> Serving:
        """The revision that a request for a preset gets."""
        serving = preset.serving
        if serving is not None and revision in (None, serving.revision):
            return serving
        if revision in (None, preset.record.revision):
            _check_built(preset.record)
        stored = preset.head if revision is None else self._kept.find(preset, revision)
        return Serving(stored, self._kept.plan(stored))

    def _preset(
        self, preset: Preset, model: str, parsed: ModelString, overrides: Overrides
    ) -> Resolved:
        serving = self.serving(preset, parsed.revision)
        document = serving.stored.record.document
        self._check_mode(document, _asked_mode(parsed.mode, overrides))
        if overrides.rule is not None:
            raise _rule_without_ensemble()
        plan = serving.plan
        if overrides.weights:
            plan = self._reweighted(document, plan, overrides.weights)
        return Resolved(model, plan, document.name, serving.revision, document.defaults)

    def _check_mode(self, document: PresetDocument, mode: str | None) -> None:
        if mode is not None and mode != document.mode:
            self._check_level(document, ("mode", "weights"), "another mode")
        if (mode or document.mode) == "ensemble":
            raise ensembles_unavailable()

    def _check_level(self, document: PresetDocument, levels: tuple[str, ...], what: str) -> None:
        level = document.overrides or self._policy.overrides
        if level in levels:
            return
        setting = "its `overrides`" if document.overrides else "the server's --overrides"
        raise ForbiddenError(
            f"preset {document.name!r} cannot be asked for {what}: {setting} is {level!r}",
            param="mergeserve",
        )

    def _reweighted(
        self, document: PresetDocument, plan: Plan, weights: Mapping[str, float]
    ) -> Plan:
        self._check_level(document, ("weights",), "other weights")
        unknown = sorted(weights.keys() - document.sources.keys())
        if unknown:
            raise InvalidRequestError(
                f"mergeserve.weights: preset {document.name!r} has no source "
                f"{', '.join(map(repr, unknown))}; it has {', '.join(sorted(document.sources))}",
                param="mergeserve.weights",
            )
        sources: dict[str, dict[str, JsonValue]] = {
            name: {**settings, "weight": weights[name]} if name in weights else settings
            for name, settings in document.sources.items()
        }
        recipe = parse_recipe(document.model_copy(update={"sources": sources}))
        reweighted = self._planner.plan(recipe, plan.sources)
        if reweighted.digest != plan.digest:
            self._check_temporary(reweighted, "mergeserve.weights")
        return reweighted

    def _check_temporary(self, plan: Plan, param: str) -> None:
        """Refuse to build weights for one request, unless the operator allows that."""
        if plan.variant is not None and self._policy.inline_recipes != "variant":
            raise ForbiddenError(
                f"{param}: these weights would have to be built for this request ({plan.reason}), "
                f"and the server's --inline-recipes is {self._policy.inline_recipes!r}; it would "
                "have to be 'variant'",
                param=param,
            )

    def _source(
        self, source: Source, model: str, parsed: ModelString, overrides: Overrides
    ) -> Resolved:
        if not self._policy.serve_sources:
            raise ForbiddenError(
                f"the source {source.name!r} cannot be called by itself: the server's "
                "--serve-sources is 'no'",
                param="model",
            )
        if parsed.revision is not None:
            raise model_not_found(model, "A source has no revisions.")
        _only_merges(overrides, parsed.mode, f"the source {source.name!r}")
        if source.plan is None:
            raise UnprocessableError(
                f"the source {source.name!r} cannot be called: {'; '.join(source.reasons)}",
                param="model",
            )
        return Resolved(model, source.plan)

    def _inline(
        self,
        snapshot: Snapshot,
        model: str,
        recipe: Mapping[str, object],
        overrides: Overrides,
    ) -> Resolved:
        if self._policy.inline_recipes == "off":
            raise ForbiddenError(
                "mergeserve.recipe: the server's --inline-recipes is 'off'",
                param="mergeserve.recipe",
            )
        if not is_base(model, self._planner.base):
            raise InvalidRequestError(
                f"mergeserve.recipe: needs no preset, so model must be the base, got {model!r}",
                param="model",
            )
        _only_merges(overrides, None, "a recipe")
        sources = recipe.get("sources")
        names = sources if isinstance(sources, Mapping) else ()
        plan = self._planner.plan_present(
            lambda: Recipe.model_validate(dict(recipe)), names, snapshot.sources
        )
        self._check_temporary(plan, "mergeserve.recipe")
        return Resolved(model, plan)


def _check_overrides(overrides: Overrides) -> None:
    if overrides.mode is not None and overrides.mode not in MODES:
        raise InvalidRequestError(
            f"mergeserve.mode: {overrides.mode!r} is not a mode; there are {', '.join(MODES)}",
            param="mergeserve.mode",
        )


def _asked_mode(in_model: str | None, overrides: Overrides) -> str | None:
    if in_model is not None and overrides.mode not in (None, in_model):
        raise InvalidRequestError(
            f"mergeserve.mode is {overrides.mode!r}, and the model string asks for {in_model!r}: "
            "give one of them",
            param="mergeserve.mode",
        )
    return in_model or overrides.mode


def _only_merges(overrides: Overrides, in_model: str | None, what: str) -> None:
    """Refuse what applies to presets only."""
    if overrides.weights:
        raise InvalidRequestError(
            f"mergeserve.weights: {what} has no weights to override; they belong to presets",
            param="mergeserve.weights",
        )
    if _asked_mode(in_model, overrides) == "ensemble":
        raise ensembles_unavailable()
    if overrides.rule is not None:
        raise _rule_without_ensemble()


def _rule_without_ensemble() -> InvalidRequestError:
    return InvalidRequestError(
        "mergeserve.rule: says how an ensemble combines its members; a merge has none",
        param="mergeserve.rule",
    )


def _check_built(record: PresetRecord) -> None:
    if record.state == "building":
        raise UnavailableError(f"{record.label} is still building", retry_after=1)
    if record.state == "failed":
        raise UnprocessableError(f"{record.label} cannot be called: {'; '.join(record.reasons)}")
