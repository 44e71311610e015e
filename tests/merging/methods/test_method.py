"""A method's signature is its schema; the schema is what users see."""

import json
import math
from collections.abc import Sequence
from typing import Annotated

import pytest

from merging.errors import RecipeError
from merging.methods import METHODS
from merging.methods.method import Combination, Doc, Method, method


@method("sample", title="Sample", paper="none")
def sample(
    weight: Annotated[Sequence[float], Doc("A weight.", minimum=0.0, maximum=1.0)],
    *,
    lambda_: Annotated[float, Doc("A factor.")] = 2.0,
    normalize: Annotated[bool, Doc("A switch.")] = True,
) -> Combination:
    """A sample."""
    return Combination(tuple(lambda_ * w for w in weight), base_scale=float(normalize))


def test_parameters_are_read_from_the_signature() -> None:
    """Name, scope, type and default come from the function; a trailing underscore is dropped."""
    seen = [(p.name, p.scope, p.type, p.default) for p in sample.parameters]
    assert seen == [
        ("weight", "source", "number", None),
        ("lambda", "recipe", "number", 2.0),
        ("normalize", "recipe", "boolean", True),
    ]


def test_combine_calls_the_function_by_parameter_names() -> None:
    """Values reach their arguments, also where the name is a Python keyword."""
    combination = sample.combine({"weight": (1.0, 2.0), "lambda": 3.0, "normalize": False})
    assert combination == Combination((3.0, 6.0), 0.0)


def test_bounds_hold_for_every_scalar_of_a_setting() -> None:
    """A value out of bounds is refused with its path and the bounds, wherever it hides."""
    weight = sample.parameter("weight")
    assert weight is not None
    weight.parse([0.0, 1.0], "w")
    with pytest.raises(RecipeError) as error:
        weight.parse([{"value": [0.5, 1.5]}, {"value": -1}], "w")
    assert error.value.reasons == (
        "w: 1.5 is out of bounds: 0.0 to 1.0",
        "w: -1.0 is out of bounds: 0.0 to 1.0",
    )


def test_an_unknown_parameter_is_none() -> None:
    """A method knows its own parameters only."""
    assert sample.parameter("density") is None


def test_a_description_is_plain_json() -> None:
    """describe() has every field that clients may rely on, and survives JSON."""
    described = sample.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["parameters"][0] == {  # type: ignore[index, call-overload]
        "name": "weight",
        "scope": "source",
        "type": "number",
        "required": True,
        "default": None,
        "minimum": 0.0,
        "maximum": 1.0,
        "description": "A weight.",
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_documented(name: str) -> None:
    """Each method has a title, a paper's address, and a description of itself and parameters."""
    registered = METHODS[name]
    assert registered.name == name
    assert registered.paper.startswith("https://arxiv.org/")
    assert registered.title
    assert registered.description
    assert all(parameter.doc.description for parameter in registered.parameters)


def defaults(registered: Method, weights: tuple[float, ...]) -> dict[str, object]:
    values: dict[str, object] = {p.name: p.default for p in registered.parameters}
    return values | {"weight": weights}


@pytest.mark.parametrize("name", METHODS)
def test_one_source_at_weight_one_is_that_source(name: str) -> None:
    """The identity merge is exact in every method."""
    registered = METHODS[name]
    combination = registered.combine(defaults(registered, (1.0,)))  # type: ignore[arg-type]
    assert combination == Combination((1.0,), 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_sources_only_permutes_the_result(name: str) -> None:
    """Coefficients follow their source, bit for bit, in whatever order sources come."""
    registered = METHODS[name]
    weights = (0.1, 0.7, 1e-3, 123.4)
    one = registered.combine(defaults(registered, weights))  # type: ignore[arg-type]
    other = registered.combine(defaults(registered, weights[::-1]))  # type: ignore[arg-type]
    assert one.coefficients == other.coefficients[::-1]
    assert all(math.isfinite(c) for c in one.coefficients)
