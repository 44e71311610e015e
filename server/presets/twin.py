"""The ensemble twin of a recipe: its members, what each counts for, and whether that is exact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ensemble.errors import RuleError
from ensemble.rule import Rule, compile_rule
from merging.plan import Plan
from merging.recipe import BASE
from merging.weighted_sum import is_weighted_sum
from server.errors import InvalidRequestError
from server.presets.document import PresetDocument
from server.presets.ensemble_settings import EnsembleSettings

WEIGHTS = frozenset({"weight", "lambda", "normalize"})
"""Parameters of a recipe that reach the twin, as coefficients. All others are the merge's only."""


@dataclass(frozen=True, slots=True)
class Twin:
    """Members by name with their coefficients, and the rule that combines them.

    `rule` is compiled for temperature 1 and names the rows, the base of task_arithmetic included.
    `is_exact`: the coefficients are those of the merge, in every tensor.
    """

    coefficients: Mapping[str, float]
    rule: Rule
    is_exact: bool


def make_twin(
    settings: EnsembleSettings,
    plan: Plan,
    base_model: str | None,
    given: Mapping[str, float] | None = None,
    exactness: Callable[[Plan], bool] | None = None,
) -> Twin:
    """The twin of a recipe with this plan. InvalidRequestError with every reason against it.

    `given` are coefficients that a request names, in place of the recipe's and the settings'.
    `exactness` is an `is_weighted_sum` that remembers.
    """
    own = {name: m.weight for name, m in settings.members.items() if m.weight is not None}
    chosen = {**own, **(given or {})}
    _check_base(settings, chosen)
    coefficients, without = _resolved(settings.rule, plan, base_model)
    others = settings.members.keys() - coefficients.keys() - _unweighted(settings)
    missing = sorted({*without, *others} - chosen.keys())
    if missing:
        raise InvalidRequestError(
            f"the ensemble's members {', '.join(missing)} have no weight: neither does the recipe "
            "give them one, nor ensemble.members.NAME.weight, nor the request's mergeserve.weights",
            param="weights",
        )
    coefficients |= chosen
    try:
        rule = compile_rule(
            settings.rule, coefficients, plausibility_alpha=settings.plausibility_alpha
        )
    except RuleError as error:
        raise InvalidRequestError(f"the ensemble cannot be run: {error}", param="rule") from error
    changed = bool(settings.members or given)
    return Twin(coefficients, rule, not changed and (exactness or is_weighted_sum)(plan))


def ignored_parameters(document: PresetDocument) -> list[str]:
    """The parameters of a document's recipe that its twin has no use for."""
    recipe = document.recipe()
    parts = recipe.slices or ()
    levels = [recipe.parameters, *recipe.sources.values(), *(part.parameters for part in parts)]
    levels += [source.parameters for part in parts for source in part.sources]
    return sorted({name for level in levels for name in level} - WEIGHTS)


def _resolved(
    rule: str, plan: Plan, base_model: str | None
) -> tuple[dict[str, float], frozenset[str]]:
    """What a recipe resolves to for its sources, and those for which it says nothing."""
    names = {*plan.sources, *plan.coefficients}
    if plan.variant is not None:
        names |= set(plan.variant.sources)
    is_pool = rule != "task_arithmetic"
    found = dict(plan.weights if is_pool else plan.members)
    missing = names - found.keys() - {BASE}
    if found and missing == {base_model}:
        missing = set()  # deltas are relative to it: it has what they leave, and no weight
        if not is_pool:
            found[str(base_model)] = 1.0 - sum(found.values())
    return found, frozenset(missing)


def _unweighted(settings: EnsembleSettings) -> frozenset[str]:
    """The base of task_arithmetic has what the members leave."""
    return frozenset({BASE} if settings.rule == "task_arithmetic" else ())


def _check_base(settings: EnsembleSettings, chosen: Mapping[str, float]) -> None:
    if BASE in chosen and BASE in _unweighted(settings):
        raise InvalidRequestError(
            "the base takes no weight in task_arithmetic: it has 1 minus the sum of the members'; "
            "give a member with model 'base' another name",
            param="weights",
        )
