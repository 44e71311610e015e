"""Resolve a recipe's settings for every tensor of the merged model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from merging.errors import PlanError
from merging.layout import Layout, Place
from merging.methods import METHODS
from merging.methods.method import Method
from merging.methods.parameter import Parameter
from merging.recipe import Recipe
from merging.section import Section
from merging.setting import Scalar, Setting, resolve
from merging.wording import shown

Key = tuple[Scalar | tuple[Scalar, ...] | None, ...]
"""The value of each parameter of a method, in its order."""


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """What a method is given for a tensor: a tuple per source parameter, by the section's sources,
    a scalar per recipe parameter. Tensors of a section with equal values share one.
    """

    section: Section
    values: Mapping[str, Scalar | tuple[Scalar, ...]]

    def of_source(self, source: str, name: str) -> Scalar:
        """A source's value of one of its parameters."""
        values = self.values[name]
        assert isinstance(values, tuple)
        return values[self.section.sources.index(source)]


@dataclass(frozen=True, slots=True, eq=False)
class Resolution:
    """The values of every tensor of a layout, in its order; hold only if there are no `reasons`."""

    tensors: tuple[Resolved, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve_recipe(recipe: Recipe, layout: Layout) -> Resolution:
    """Resolve a recipe for every tensor of its layout; what cannot be is in `reasons`."""
    method = METHODS[recipe.method]
    problems: dict[str, list[str]] = {}  # the tensors of each
    tensors: list[Resolved] = []
    settings: dict[int | None, _Settings] = {}
    for place in layout.places:
        section = place.section
        if section.index not in settings:
            settings[section.index] = _Settings(recipe, method, section)
        resolved, reasons = settings[section.index].resolve(place)
        tensors.append(resolved)
        for reason in reasons:
            problems.setdefault(reason, []).append(place.name)
    return Resolution(
        tuple(tensors),
        tuple(f"{reason} ({shown(names)})" for reason, names in problems.items()),
        tuple(_unmatched_filters(settings.values(), layout)),
    )


class _Settings:
    """The settings of one section, and what they have resolved to so far."""

    def __init__(self, recipe: Recipe, method: Method, section: Section) -> None:
        self.method, self.section = method, section
        self.shared = [(p, _of(recipe, p, None, section)) for p in method.parameters]
        self.own = {
            p.name: [_of(recipe, p, source, section) for source in section.sources]
            for p in method.parameters
            if p.scope == "source"
        }
        self._compiled = [self._compile(p, setting) for p, setting in self.shared]
        self._is_constant = all(constant is not None for constant, _, _ in self._compiled)
        self._known: dict[Key, tuple[Resolved, Sequence[str]]] = {}

    def _compile(
        self, parameter: Parameter, setting: Setting
    ) -> tuple[Scalar | tuple[Scalar, ...] | None, Setting, Sequence[Setting] | None]:
        """The value of a parameter if it is one for all tensors; else the settings to resolve."""
        if parameter.scope == "recipe":
            return _constant(setting), setting, None
        own = self.own[parameter.name]
        found = [value for source in own if (value := _constant(source)) is not None]
        return (tuple(found) if len(found) == len(own) else None), (), own

    def all(self) -> Iterator[tuple[Parameter, str | None, Setting]]:
        """Every setting, with its parameter, and its source if it is a source's."""
        for parameter, setting in self.shared:
            if parameter.scope == "recipe":
                yield parameter, None, setting
            else:
                owners = zip(self.section.sources, self.own[parameter.name], strict=True)
                yield from ((parameter, source, setting) for source, setting in owners)

    def resolve(self, place: Place) -> tuple[Resolved, Sequence[str]]:
        """The values for one tensor, and what is wrong with them."""
        if self._is_constant and self._known:  # most recipes: no filter and no gradient
            return next(iter(self._known.values()))
        key = self._key(place)
        if key not in self._known:  # most tensors have the values of another
            self._known[key] = self._check(key)
        return self._known[key]

    def _key(self, place: Place) -> Key:
        """Shared settings see the name of the output, a source's that of its input."""
        name, inputs, t = place.name, place.inputs, place.t
        key: list[Scalar | tuple[Scalar, ...] | None] = []
        for constant, setting, own in self._compiled:
            if constant is not None:
                key.append(constant)
            elif own is None:
                key.append(resolve(setting, name, t))
            else:  # an input without a value is looked for in _check
                key.append(tuple([resolve(s, n, t) for s, n in zip(own, inputs, strict=True)]))  # type: ignore[misc]
        return tuple(key)

    def _check(self, key: Key) -> tuple[Resolved, Sequence[str]]:
        values = {p.name: value for p, value in zip(self.method.parameters, key, strict=True)}
        resolved = Resolved(self.section, values)  # type: ignore[arg-type]  # checked here
        reasons = [
            f"{path}: no filter matches; add an entry without a filter"
            for path in self._unresolved(values)
        ]
        if not reasons and self.section.sources:
            try:
                self.method.check(resolved.values)
            except PlanError as error:
                reasons = [f"{self.section.where}{reason}" for reason in error.reasons]
        return resolved, reasons

    def _unresolved(self, values: Mapping[str, object]) -> Iterator[str]:
        for name, value in values.items():
            if value is None:
                yield f"parameters.{name}"
            elif isinstance(value, tuple):
                owners = zip(self.section.sources, value, strict=True)
                yield from (f"sources.{owner}.{name}" for owner, scalar in owners if scalar is None)


def _of(recipe: Recipe, parameter: Parameter, source: str | None, section: Section) -> Setting:
    return recipe.setting(parameter, source, section.index)


def _constant(setting: Setting) -> Scalar | None:
    """The value of a setting that has one for all tensors."""
    is_constant = setting and setting[0].filter is None and len(setting[0].values) == 1
    return setting[0].values[0] if is_constant else None


def _unmatched_filters(sections: Iterable[_Settings], layout: Layout) -> Iterator[str]:
    """A filter may be a slip: warn of one that no tensor's name contains."""
    filters = {
        (parameter.name, entry.filter)
        for settings in sections
        for parameter, _, setting in settings.all()
        for entry in setting
        if entry.filter is not None
    }
    if not filters:
        return
    names = {name for place in layout.places for name in (place.name, *place.inputs)}
    kind = "tensor" if layout.is_whole else "linear layer"
    for parameter, pattern in sorted((p, f) for p, f in filters if f is not None):
        if not any(pattern in name for name in names):
            yield f"{parameter}: filter {pattern!r} matches no {kind} of the base"
