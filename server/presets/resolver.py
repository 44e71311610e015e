"""From a model string to the plan of the weights that a request is pinned to."""

from collections.abc import Mapping
from dataclasses import replace

from pydantic import JsonValue

from merging.methods import METHODS
from merging.plan import Plan, base_plan
from merging.recipe import BASE, Recipe
from server.errors import InvalidRequestError
from server.presets.conversations import conversation_of
from server.presets.document import PresetDocument
from server.presets.ensemble_settings import EnsembleSettings
from server.presets.ensembles import Ensemble, EnsembleMember, EnsemblePlanner
from server.presets.kept_revisions import KeptRevisions
from server.presets.member_finder import LIST_MODELS, MemberFinder
from server.presets.names import ModelString, is_base, model_not_found, parse_model_string
from server.presets.overriding import (
    asked_mode,
    check_known,
    check_no_weights,
    check_only_merges,
    combination_fields,
    overridden,
)
from server.presets.permissions import Permissions
from server.presets.planner import Planner, parse_recipe
from server.presets.policy import Policy
from server.presets.resolved import Resolved
from server.presets.served import ChatDefaults, Mode, Overrides
from server.presets.snapshot import Preset, Serving, Snapshot
from server.presets.sources import Source
from server.presets.weighing import Candidates


class Resolver:
    """Resolves model strings on a snapshot, within what the policy lets callers do."""

    def __init__(self, planner: Planner, kept: KeptRevisions, policy: Policy) -> None:
        self._planner = planner
        self._kept = kept
        self._permissions = Permissions(policy)
        self.members = MemberFinder(planner.base, kept, self._permissions)
        self.base_plan = base_plan(planner.base)
        self._ensembles = EnsemblePlanner(planner)

    def resolve(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Resolved:
        """What `model` means now, with a request's overrides applied."""
        if overrides.recipe is not None:
            return self._inline(snapshot, model, overrides.recipe, overrides)
        if is_base(model, self._planner.base):
            return self._base(snapshot, model, overrides)
        parsed = parse_model_string(model)
        if preset := snapshot.presets.get(parsed.name):
            return self._preset(snapshot, preset, model, parsed, overrides)
        if source := snapshot.sources.get(parsed.name):
            return self._source(source, model, parsed, overrides)
        if is_base(parsed.name, self._planner.base):
            raise model_not_found(model, "The base has no revisions and no modes.")
        raise model_not_found(model, LIST_MODELS, [*snapshot.presets, *snapshot.sources])

    def chat_defaults(self, snapshot: Snapshot, model: str) -> ChatDefaults:
        """How conversations with a model are written, whatever its weights are."""
        if is_base(model, self._planner.base):
            return ChatDefaults()
        parsed = parse_model_string(model)
        if preset := snapshot.presets.get(parsed.name):
            found = self._as_merge(snapshot, self._kept.serving(preset, parsed.revision), model)
            return ChatDefaults(found.conversation, found.defaults.chat_template_kwargs or {})
        if source := snapshot.sources.get(parsed.name):
            return ChatDefaults(source.conversation)
        raise model_not_found(model, LIST_MODELS)

    def candidates(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Candidates:
        """The sources of a preset among which a request's prompt is to choose.

        What would be refused with weights of the request's own is refused here.
        """
        if overrides.recipe is not None or is_base(model, self._planner.base):
            check_no_weights(overrides, "a recipe" if overrides.recipe else "the base")
        parsed = parse_model_string(model)
        preset = snapshot.presets.get(parsed.name)
        chosen = replace(overrides, auto=None, weights_temperature=None)
        if preset is None:
            check_no_weights(overrides, self.resolve(snapshot, model, chosen).model)
            raise AssertionError("what is no preset has no weights")
        serving = self._kept.serving(preset, parsed.revision)
        document, plan = serving.stored.record.document, serving.plan
        names = sorted(document.sources.keys() & plan.sources.keys())
        if not names:
            raise InvalidRequestError(
                f"mergeserve.weights: preset {document.name!r} has no source to choose",
                param="mergeserve.weights",
            )
        if overrides.auto == "route":
            self._permissions.check_level(document, ("weights",), "other weights")
            mode = self._mode(document, asked_mode(parsed.mode, overrides))
            if mode == "merge":
                check_only_merges(overrides)
            resolved = replace(self._as_merge(snapshot, serving, model), mode=mode)
        else:
            even = dict.fromkeys(names, 1.0 / len(names))
            resolved = self.resolve(snapshot, model, replace(chosen, weights=even))
        sources = (EnsembleMember(n, self._ensembles.source(n, plan)) for n in names)
        return Candidates(resolved, tuple(sources), chosen)

    def _preset(
        self,
        snapshot: Snapshot,
        preset: Preset,
        model: str,
        parsed: ModelString,
        overrides: Overrides,
    ) -> Resolved:
        serving = self._kept.serving(preset, parsed.revision)
        document, plan = serving.stored.record.document, serving.plan
        mode = self._mode(document, asked_mode(parsed.mode, overrides))
        if mode == "ensemble":
            return self._as_ensemble(snapshot, serving, model, overrides)
        check_only_merges(overrides)
        if overrides.weights:
            plan = self._reweighted(document, plan, overrides.weights)
            if plan.digest != serving.plan.digest:
                check = self._permissions
                may_build = check.check_probe if overrides.is_probe else check.check_temporary
                may_build(plan, "mergeserve.weights")
        return replace(self._as_merge(snapshot, serving, model), plan=plan)

    def in_mode(self, snapshot: Snapshot, preset: Preset, mode: Mode) -> Resolved:
        """What a preset serves in a mode, whatever callers may ask for."""
        serving = self._kept.serving(preset, None)
        document = serving.stored.record.document
        if mode == "ensemble":
            return self._as_ensemble(snapshot, serving, document.name, Overrides())
        return self._as_merge(snapshot, serving, document.name)

    def _as_merge(self, snapshot: Snapshot, serving: Serving, model: str) -> Resolved:
        document = serving.stored.record.document
        return Resolved(
            model,
            serving.plan,
            document.name,
            serving.revision,
            document.defaults,
            conversation=conversation_of(document, snapshot.sources),
        )

    def _as_ensemble(
        self, snapshot: Snapshot, serving: Serving, model: str, overrides: Overrides
    ) -> Resolved:
        ensemble = self._ensemble(snapshot, serving, overrides)
        resolved = self._as_merge(snapshot, serving, model)
        return replace(resolved, mode="ensemble", ensemble=ensemble)

    def _mode(self, document: PresetDocument, asked: Mode | None) -> Mode:
        if asked is not None and asked != document.mode:
            self._permissions.check_level(document, ("mode", "weights"), "another mode")
        return asked or document.mode

    def _ensemble(self, snapshot: Snapshot, serving: Serving, overrides: Overrides) -> Ensemble:
        """The preset's ensemble, as the request changes it."""
        document, plan = serving.stored.record.document, serving.plan
        if combination_fields(overrides):
            self._permissions.check_level(document, ("mode", "weights"), "another rule")
        if overrides.members:
            self._permissions.check_level(document, ("weights",), "other members")
        settings = overridden(document.ensemble, overrides)
        given: Mapping[str, float] = {}
        if overrides.weights:
            plan, given = self._weighted(document, settings, plan, overrides.weights)
        find = self.members.finder(snapshot, overrides.members, serving.members)
        return self._ensembles.plan(settings, plan, document.base_model, find, given)

    def _weighted(
        self,
        document: PresetDocument,
        settings: EnsembleSettings,
        plan: Plan,
        weights: Mapping[str, float],
    ) -> tuple[Plan, Mapping[str, float]]:
        """The recipe with a request's weights, and those weights that it has no place for: of
        members beside its sources, and of methods without weights.
        """
        beside = {name for name, m in settings.members.items() if m.weight is not None}
        beside |= settings.members.keys() - document.sources.keys()
        if METHODS[document.method].parameter("weight") is None:
            beside |= plan.sources.keys()
        given = {name: weight for name, weight in weights.items() if name in beside}
        rest = {name: weight for name, weight in weights.items() if name not in beside}
        self._permissions.check_level(document, ("weights",), "other weights")
        return (self._reweighted(document, plan, rest) if rest else plan), given

    def _reweighted(
        self, document: PresetDocument, plan: Plan, weights: Mapping[str, float]
    ) -> Plan:
        self._permissions.check_level(document, ("weights",), "other weights")
        check_known(weights, document.sources, f"preset {document.name!r} has no source")
        sources: dict[str, dict[str, JsonValue]] = {
            name: {**settings, "weight": weights[name]} if name in weights else settings
            for name, settings in document.sources.items()
        }
        recipe = parse_recipe(document.model_copy(update={"sources": sources}))
        return self._planner.plan(recipe, plan.sources)

    def _source(
        self, source: Source, model: str, parsed: ModelString, overrides: Overrides
    ) -> Resolved:
        plan = self._permissions.source_plan(source)
        if parsed.revision is not None:
            raise model_not_found(model, "A source has no revisions.")
        check_no_weights(overrides, f"the source {source.name!r}")
        if asked_mode(parsed.mode, overrides) == "ensemble":
            raise InvalidRequestError(
                f"the source {source.name!r} is one model, and no ensemble: ask a preset, or the "
                "base with mergeserve.members",
                param="mergeserve.mode",
            )
        check_only_merges(overrides)
        return Resolved(model, plan, conversation=source.conversation)

    def _base(self, snapshot: Snapshot, model: str, overrides: Overrides) -> Resolved:
        """The base, or an ensemble of the members that the request names."""
        resolved = Resolved(model, self.base_plan)
        if asked_mode(None, overrides) != "ensemble":
            check_no_weights(overrides, "the base")
            check_only_merges(overrides)
            return resolved
        self._permissions.check_inline("mergeserve.members")
        if not overrides.members:
            raise InvalidRequestError(
                "the base is one model, and no ensemble: name its members in mergeserve.members, "
                "or ask a preset",
                param="mergeserve.mode",
            )
        settings = overridden(EnsembleSettings(), overrides)
        given = overrides.weights or {}
        check_known(given, settings.members, "the ensemble has no member")
        find = self.members.finder(snapshot, settings.members, {})
        ensemble = self._ensembles.plan(settings, self.base_plan, BASE, find, given)
        return replace(resolved, mode="ensemble", ensemble=ensemble)

    def _inline(
        self,
        snapshot: Snapshot,
        model: str,
        recipe: Mapping[str, object],
        overrides: Overrides,
    ) -> Resolved:
        self._permissions.check_inline("mergeserve.recipe")
        if not is_base(model, self._planner.base):
            raise InvalidRequestError(
                f"mergeserve.recipe: needs no preset, so model must be the base, got {model!r}",
                param="model",
            )
        check_no_weights(overrides, "a recipe")
        is_ensemble = asked_mode(None, overrides) == "ensemble"
        if not is_ensemble:
            check_only_merges(overrides)
        sources = recipe.get("sources")
        names = sources if isinstance(sources, Mapping) else ()
        plan = self._planner.plan_present(
            lambda: Recipe.model_validate(dict(recipe)), names, snapshot.sources
        )
        resolved = Resolved(model, plan)
        if is_ensemble:
            settings = overridden(EnsembleSettings(), overrides)
            find = self.members.finder(snapshot, settings.members, {})
            base_model = recipe.get("base_model", BASE)
            own = self._ensembles.plan(
                settings, plan, base_model if isinstance(base_model, str) else None, find
            )
            resolved = replace(resolved, mode="ensemble", ensemble=own)
        for member in resolved.members:
            self._permissions.check_temporary(member.plan, "mergeserve.recipe")
        return resolved
