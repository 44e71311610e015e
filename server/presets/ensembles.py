"""Ensembles, planned: which rows a request runs, each with its weights and its prompt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from merging.digest import json_digest
from merging.plan import Plan, base_plan
from merging.recipe import BASE
from merging.weighted_sum import is_weighted_sum
from server.errors import InvalidRequestError
from server.presets.ensemble_settings import EnsembleSettings, MemberSettings
from server.presets.planner import NUM_RECENT, Planner
from server.presets.recent import Recent
from server.presets.served import Combination
from server.presets.twin import Twin, make_twin

FindModel = Callable[[str, str], Plan]
"""The plan of a member, by its name, that runs the model of this string."""


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """A member whose row runs: the plan of its weights, and what it reads of its own."""

    name: str
    plan: Plan
    system: str | None = None
    prompt: str | None = None

    @property
    def reads_request(self) -> bool:
        """Whether it reads what the request sends, as it is."""
        return self.system is None and self.prompt is None


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The members that run, in the order of their rows, and how these become one distribution.

    `digest` is the recipe's; where members were added or weighted beside it, it covers them too.
    """

    digest: str
    members: tuple[EnsembleMember, ...]
    combination: Combination
    is_exact: bool


class EnsemblePlanner:
    """Finds the weights of the members of ensembles on one base."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._base_plan = base_plan(planner.base)
        self._exact: Recent[str, bool] = Recent(NUM_RECENT)

    def plan(
        self,
        settings: EnsembleSettings,
        plan: Plan,
        base_model: str | None,
        find: FindModel,
        given: Mapping[str, float] | None = None,
    ) -> Ensemble:
        """The ensemble of a recipe with this plan; `find` looks up members beside its sources.

        InvalidRequestError if there is none, or none that reads the request's prompt.
        """
        twin = make_twin(settings, plan, base_model, given, self._is_exact)
        rule = twin.rule.pruned()
        members = [self._member(name, settings, plan, find) for name in rule.rows]
        if not any(member.reads_request for member in members):
            raise InvalidRequestError(
                "every member of the ensemble has a prompt of its own: none would read the "
                "request's",
                param="members",
            )
        members.sort(key=lambda member: not member.reads_request)
        combination = Combination(
            rule=settings.rule,
            coefficients=twin.coefficients,
            rows=tuple(member.name for member in members),
            temperature_order=settings.temperature_order,
            plausibility_alpha=settings.plausibility_alpha,
        )
        digest = _digest(settings, plan, members, twin, given)
        return Ensemble(digest, tuple(members), combination, twin.is_exact)

    def _is_exact(self, plan: Plan) -> bool:
        return self._exact.get(plan.digest, lambda: is_weighted_sum(plan))

    def _member(
        self, name: str, settings: EnsembleSettings, plan: Plan, find: FindModel
    ) -> EnsembleMember:
        own = settings.members.get(name, MemberSettings())
        member = EnsembleMember(name, self._base_plan, own.system, own.prompt)
        if name in plan.sources:
            if own.model is not None:
                raise InvalidRequestError(
                    f"members.{name}.model: {name} is a source of the preset; give the member that "
                    f"runs {own.model!r} another name",
                    param="members",
                )
            return replace(member, plan=self.source(name, plan))
        model = own.model or name
        if name == BASE and model != BASE:
            raise InvalidRequestError(
                f"members.base.model: base is the resident base; give the member that runs "
                f"{model!r} another name",
                param="members",
            )
        if model in plan.sources:
            return replace(member, plan=self.source(model, plan))
        return member if model == BASE else replace(member, plan=find(name, model))

    def source(self, name: str, plan: Plan) -> Plan:
        """The plan of one source of a recipe alone, with the content that the recipe has."""
        return self._planner.plan_source(name, plan.sources[name])


def _digest(
    settings: EnsembleSettings,
    plan: Plan,
    members: list[EnsembleMember],
    twin: Twin,
    given: Mapping[str, float] | None,
) -> str:
    own = [m for m in settings.members.values() if m.model is not None or m.weight is not None]
    if not own and not given and settings.members.keys() <= {*plan.sources, BASE}:
        return plan.digest
    rows = dict(zip(twin.rule.rows, twin.rule.coefficients, strict=True))
    parts = sorted([member.plan.digest, rows[member.name]] for member in members)
    return json_digest({"recipe": plan.digest, "members": parts})
