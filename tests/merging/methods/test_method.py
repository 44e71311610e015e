"""A method's signature is its schema; the schema is what users see."""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

import pytest
import torch

from merging.errors import PlanError, RecipeError
from merging.methods.combination import Combination
from merging.methods.method import Vectors, method
from merging.methods.parameter import Doc


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


def choose(flat: bool) -> Vectors:
    return "all" if flat else "rows"


def refuse(steps: int) -> None:
    if steps == 13:
        raise PlanError("13 steps")


@method(
    "walk",
    title="Walk",
    paper="none",
    kind="geometric",
    base="optional",
    vectors=choose,
    check=refuse,
)
def walk(
    gram: torch.Tensor,
    *,
    steps: Annotated[int, Doc("Steps.", minimum=1)] = 3,
    how: Annotated[Literal["far", "near"], Doc("Where to.")] = "far",
    flat: Annotated[bool, Doc("Whole tensors.")] = True,
    depth: Annotated[float, Doc("Depth.", gradient=(0.0, 1.0))],
) -> Combination:
    """The number of steps times the square of a source's length."""
    return Combination(tuple(steps * float(square) for square in gram.diagonal()[1:]))


VALUES = {"steps": 2, "how": "near", "flat": False, "depth": 0.5}


def test_integers_choices_and_gradients_are_kinds_of_parameters() -> None:
    """int, a Literal and a default gradient are read from the signature, and described."""
    described = walk.describe()["parameters"]
    seen = [(p["name"], p["type"], p["default"], p["required"]) for p in described]  # type: ignore[union-attr, index, call-overload]
    assert seen == [
        ("steps", "integer", 3, False),
        ("how", "choice", "far", False),
        ("flat", "boolean", True, False),
        ("depth", "number", [0.0, 1.0], False),
    ]
    assert described[1]["choices"] == ["far", "near"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("steps", 1.5, "p: must be a whole number, got 1.5"),
        ("steps", True, "p: must be a whole number, got True"),
        ("steps", 0, "p: 0 is out of bounds: at least 1"),
        ("how", "nowhere", "p: must be one of far, near, got 'nowhere'"),
        ("how", 3, "p: must be text, got 3"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(name: str, value: object, reason: str) -> None:
    """The reason names the value and what it must be."""
    parameter = walk.parameter(name)
    assert parameter is not None
    with pytest.raises(RecipeError) as error:
        parameter.parse(value, "p")
    assert error.value.reasons == (reason,)


def test_a_geometric_method_sees_the_gram_matrix() -> None:
    """As given; or, on whole vectors, that of W0 + tau, and then the base's share is their sum."""
    gram = torch.tensor([[4.0, 1.0], [1.0, 9.0]], dtype=torch.float64)
    assert walk.combine_gram(gram, VALUES) == Combination((18.0,), 1.0)
    assert walk.combine_gram(gram, VALUES, whole=True) == Combination((30.0,), 30.0)


def test_hooks_get_the_parameters_that_they_name() -> None:
    """vectors() and check() are functions of the values."""
    assert walk.vectors(VALUES) == "rows"
    assert walk.vectors(VALUES | {"flat": True}) == "all"
    walk.check(VALUES)
    with pytest.raises(PlanError, match="13"):
        walk.check(VALUES | {"steps": 13})


def test_checking_a_linear_method_combines_it() -> None:
    """What has no result is found without tensors."""
    sample.check({"weight": (1.0,), "lambda": 1.0, "normalize": True})


def test_a_method_of_another_kind_does_not_combine() -> None:
    """combine() is for linear methods; asking another is a mistake of the caller."""
    with pytest.raises(AssertionError, match="walk is not linear"):
        walk.combine(VALUES)
