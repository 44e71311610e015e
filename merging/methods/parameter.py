"""A parameter of a merge method: its schema, read from an argument of the method's function."""

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from pydantic import JsonValue

from merging.errors import RecipeError
from merging.setting import Entry, Kind, Scalar, Setting, parse_setting

Scope = Literal["source", "recipe"]


@dataclass(frozen=True, slots=True)
class Doc:
    """What a parameter does and the bounds of its scalars; annotates an argument of a method.

    `default` is that of a source's parameter, whose argument is a sequence. `gradient` is a default
    that changes over the layers, in place of a scalar one. An `inert` parameter is accepted because
    other tools accept it there, and changes nothing; plans warn of it.
    """

    description: str
    minimum: float | None = None
    maximum: float | None = None
    default: Scalar | None = None
    gradient: tuple[float, ...] = ()
    inert: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: a value per source, or one for the recipe. `choices`: those of type choice."""

    name: str
    scope: Scope
    type: Kind
    default: Scalar | None
    doc: Doc
    choices: tuple[str, ...] = ()

    @property
    def argument(self) -> str:
        """The name in Python, where `lambda` is a keyword."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name

    @property
    def required(self) -> bool:
        """Whether a recipe must set it."""
        return self.default is None and not self.doc.gradient

    @property
    def default_setting(self) -> Setting:
        """What holds where a recipe sets nothing; empty if it is required."""
        if self.doc.gradient:
            return (Entry(self.doc.gradient),)
        return () if self.default is None else (Entry((self.default,)),)

    def parse(self, value: object, path: str) -> Setting:
        """Read a setting of this parameter from plain JSON; `path` says where it stands.

        Raises RecipeError with a reason for every scalar of the wrong type or out of bounds.
        """
        setting = parse_setting(value, path, self.type, self.choices)
        low, high = self.doc.minimum, self.doc.maximum
        numbers = [v for entry in setting for v in entry.values if not isinstance(v, str)]
        reasons = [
            f"{path}: {number} is out of bounds: {_bounds(low, high)}"
            for number in numbers
            if (low is not None and number < low) or (high is not None and number > high)
        ]
        if reasons:
            raise RecipeError(reasons)
        return setting

    def describe(self) -> dict[str, JsonValue]:
        """The parameter as plain JSON. A `default` that is a list is a gradient over the layers."""
        described: dict[str, JsonValue] = {
            "name": self.name,
            "scope": self.scope,
            "type": self.type,
            "required": self.required,
            "default": list(self.doc.gradient) or self.default,
            "minimum": self.doc.minimum,
            "maximum": self.doc.maximum,
            "description": self.doc.description,
        }
        return described | ({"choices": list(self.choices)} if self.choices else {})


def parameters_of(function: Callable[..., object], given: Sequence[str]) -> tuple[Parameter, ...]:
    """The parameters that a method's function declares, without the arguments `given` to it.

    Every one is annotated with a Doc: `Annotated[Sequence[float], Doc(…)]` is a parameter of each
    source, `Annotated[float, Doc(…)]` one of the recipe. The type is float (a number), int, bool or
    a Literal of texts (a choice).
    """
    hints = get_type_hints(function, include_extras=True)
    arguments = inspect.signature(function).parameters.values()
    return tuple(_parameter(a, hints[a.name]) for a in arguments if a.name not in given)


def _parameter(argument: inspect.Parameter, annotation: object) -> Parameter:
    assert get_origin(annotation) is Annotated, f"{argument.name} is not annotated with a Doc"
    value_type, doc = get_args(annotation)
    scope: Scope = "source" if get_origin(value_type) is Sequence else "recipe"
    scalar = get_args(value_type)[0] if scope == "source" else value_type
    default = doc.default if argument.default is argument.empty else argument.default
    name = argument.name.rstrip("_")
    if get_origin(scalar) is Literal:
        return Parameter(name, scope, "choice", default, doc, get_args(scalar))
    kinds: Mapping[object, Kind] = {float: "number", int: "integer", bool: "boolean"}
    return Parameter(name, scope, kinds[scalar], default, doc)


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else f"at most {high}"
