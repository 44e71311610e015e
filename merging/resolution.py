"""Resolve a recipe's settings for every linear layer of a base, and combine them by its method."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from merging.base import Base
from merging.errors import PlanError
from merging.methods import METHODS
from merging.methods.method import Combination, Method
from merging.recipe import Recipe
from merging.setting import Scalar, Setting, resolve
from merging.wording import shown

Values = tuple[Scalar | None, ...]
"""What one parameter resolves to for one tensor: a value per source, or a single one."""

WEIGHT = "weight"
"""The parameter of sources that pools of an ensemble take for their shares."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Resolution:
    """`coefficients`: float64 [num_modules] by source, columns in the order of `base.linears`.

    `weights` are the sources' own, before the method combines them; empty for a method without.
    Both hold only if there are no `reasons`.
    """

    coefficients: Mapping[str, npt.NDArray[np.float64]]
    weights: Mapping[str, npt.NDArray[np.float64]]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve_recipe(recipe: Recipe, base: Base) -> Resolution:
    """Resolve a recipe for every linear layer of a base; what cannot be is in `reasons`."""
    method, names = METHODS[recipe.method], sorted(recipe.sources)
    settings = {
        p.name: [recipe.setting(p, name) for name in (names if p.scope == "source" else [None])]
        for p in method.parameters
    }
    rows = np.zeros((len(names), len(base.linears)))
    weights = np.full_like(rows, np.nan)
    has_weights = WEIGHT in settings
    problems: dict[str, list[str]] = {}  # the modules of each
    known: dict[tuple[Values, ...], tuple[Combination | None, list[str]]] = {}
    for column, module in enumerate(base.linears):
        tensor_name, t = f"{module}.weight", base.depth(module)
        values = tuple(
            tuple(resolve(setting, tensor_name, t) for setting in settings[p.name])
            for p in method.parameters
        )
        if values not in known:  # most modules have the values of another
            known[values] = _combine(method, names, values)
        combination, reasons = known[values]
        for reason in reasons:
            problems.setdefault(reason, []).append(module)
        if combination is not None:
            rows[:, column] = combination.coefficients
            if has_weights:
                weights[:, column] = values[list(settings).index(WEIGHT)]
    return Resolution(
        coefficients=dict(zip(names, rows, strict=True)),
        weights=dict(zip(names, weights, strict=True)) if has_weights else {},
        reasons=tuple(f"{reason} ({shown(modules)})" for reason, modules in problems.items()),
        warnings=tuple(_unmatched_filters(settings, base)),
    )


def _combine(
    method: Method, names: Sequence[str], values: tuple[Values, ...]
) -> tuple[Combination | None, list[str]]:
    """Combine the values of one tensor, or say what is wrong with them."""
    reasons = []
    arguments: dict[str, Scalar | tuple[Scalar, ...]] = {}
    for parameter, resolved in zip(method.parameters, values, strict=True):
        of_source = parameter.scope == "source"
        owners = [f"sources.{name}" for name in names] if of_source else ["parameters"]
        scalars = tuple(value for value in resolved if value is not None)
        arguments[parameter.name] = scalars if of_source or not scalars else scalars[0]
        reasons += [
            f"{owner}.{parameter.name}: no filter matches; add an entry without a filter"
            for owner, value in zip(owners, resolved, strict=True)
            if value is None
        ]
    if reasons:
        return None, reasons
    try:
        combination = method.combine(arguments)
    except PlanError as error:
        return None, list(error.reasons)
    return combination, list(_problems(method, names, combination))


def _problems(method: Method, names: Sequence[str], combination: Combination) -> Iterator[str]:
    scale = combination.base_scale
    if not abs(scale - 1.0) < 1e-9:
        yield (
            f"the weights sum to {scale:g}, and {method.name} without normalize scales the base "
            f"itself by that, which is not available in this release; set normalize to true, use "
            f"method task_arithmetic, or give the source 'base' the rest, {1.0 - scale:g}"
        )
    for name, coefficient in zip(names, combination.coefficients, strict=True):
        if not abs(coefficient) <= FLOAT32_MAX:
            yield f"sources.{name}: its coefficient, {coefficient:g}, is not a finite float32"


def _unmatched_filters(settings: Mapping[str, Sequence[Setting]], base: Base) -> Iterator[str]:
    for parameter, of_sources in settings.items():
        filters = {entry.filter for setting in of_sources for entry in setting}
        for pattern in sorted(pattern for pattern in filters if pattern is not None):
            if not any(pattern in f"{module}.weight" for module in base.linears):
                yield f"{parameter}: filter {pattern!r} matches no linear layer of the base"
