"""A merge method: a pure function, and the schema of its parameters, read from its signature."""

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from pydantic import JsonValue

from merging.errors import RecipeError
from merging.setting import Kind, Scalar, Setting, parse_setting

Scope = Literal["source", "recipe"]


@dataclass(frozen=True, slots=True)
class Doc:
    """What a parameter does and the bounds of its scalars; annotates an argument of a method.

    `default` is that of a source's parameter, whose argument is a sequence. An `inert` parameter is
    accepted because other tools accept it there, and changes nothing; plans warn of it.
    """

    description: str
    minimum: float | None = None
    maximum: float | None = None
    default: Scalar | None = None
    inert: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: a value per source, or one for the recipe. A `default` of None: required."""

    name: str
    scope: Scope
    type: Kind
    default: Scalar | None
    doc: Doc

    @property
    def argument(self) -> str:
        """The name in Python, where `lambda` is a keyword."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name

    def parse(self, value: object, path: str) -> Setting:
        """Read a setting of this parameter from plain JSON; `path` says where it stands.

        Raises RecipeError with a reason for every scalar of the wrong type or out of bounds.
        """
        setting = parse_setting(value, path, self.type)
        low, high = self.doc.minimum, self.doc.maximum
        reasons = [
            f"{path}: {number} is out of bounds: {low} to {high}"
            for number in (number for entry in setting for number in entry.values)
            if (low is not None and number < low) or (high is not None and number > high)
        ]
        if reasons:
            raise RecipeError(reasons)
        return setting

    def describe(self) -> dict[str, JsonValue]:
        """The parameter as plain JSON."""
        return {
            "name": self.name,
            "scope": self.scope,
            "type": self.type,
            "required": self.default is None,
            "default": self.default,
            "minimum": self.doc.minimum,
            "maximum": self.doc.maximum,
            "description": self.doc.description,
        }


@dataclass(frozen=True, slots=True)
class Combination:
    """What a linear method makes of one tensor: `base_scale * W0 + sum_i coefficients[i] * tau_i`.

    `coefficients`: one per source, in the order of the method's arguments. `tau_i` is what source
    i adds to the base's tensor `W0`.
    """

    coefficients: tuple[float, ...]
    base_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method. `takes_base`: the base may be one of its sources, of delta zero."""

    name: str
    title: str
    paper: str
    description: str
    takes_base: bool
    parameters: tuple[Parameter, ...]
    function: Callable[..., Combination]

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)

    def combine(self, values: Mapping[str, Scalar | tuple[Scalar, ...]]) -> Combination:
        """Combine one tensor: a scalar for every recipe parameter, a tuple for every source one.

        Raises PlanError if these values have no result.
        """
        return self.function(**{p.argument: values[p.name] for p in self.parameters})

    def describe(self) -> dict[str, JsonValue]:
        """The method and its parameters as plain JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "description": self.description,
            "takes_base": self.takes_base,
            "parameters": [parameter.describe() for parameter in self.parameters],
        }


def method(
    name: str, *, title: str, paper: str, takes_base: bool = False
) -> Callable[[Callable[..., Combination]], Method]:
    """Make a Method of a function of the resolved values of one tensor.

    Every argument is annotated with a Doc: `Annotated[Sequence[float], Doc(…)]` is a parameter of
    each source, `Annotated[float, Doc(…)]` or `Annotated[bool, Doc(…)]` one of the recipe.
    """

    def decorate(function: Callable[..., Combination]) -> Method:
        hints = get_type_hints(function, include_extras=True)
        arguments = inspect.signature(function).parameters.values()
        parameters = tuple(_parameter(argument, hints[argument.name]) for argument in arguments)
        description = inspect.getdoc(function)
        assert description, f"{name} has no docstring"
        return Method(name, title, paper, description, takes_base, parameters, function)

    return decorate


def _parameter(argument: inspect.Parameter, annotation: object) -> Parameter:
    assert get_origin(annotation) is Annotated, f"{argument.name} is not annotated with a Doc"
    value_type, doc = get_args(annotation)
    scope: Scope = "source" if get_origin(value_type) is Sequence else "recipe"
    scalar = get_args(value_type)[0] if scope == "source" else value_type
    kinds: Mapping[object, Kind] = {float: "number", bool: "boolean"}
    default = doc.default if argument.default is argument.empty else argument.default
    return Parameter(argument.name.rstrip("_"), scope, kinds[scalar], default, doc)
