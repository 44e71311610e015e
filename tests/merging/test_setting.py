"""Settings resolve as in mergekit 0.1.5; golden values are worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.errors import RecipeError
from merging.setting import Entry, Kind, chain, parse_setting, resolve, setting_json

Q0 = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
HEAD = "lm_head.weight"


def value_of(setting: object, name: str = Q0, t: float = 0.0, kind: Kind = "number") -> object:
    return resolve(parse_setting(setting, "x", kind), name, t)


def test_a_scalar_holds_everywhere() -> None:
    """A number is the value of every tensor at every depth."""
    assert value_of(0.3) == 0.3
    assert value_of(2, HEAD, 1.0) == 2.0


@pytest.mark.parametrize(
    ("gradient", "t", "expected"),
    [
        ([0.0, 1.0], 0.0, 0.0),
        ([0.0, 1.0], 0.25, 0.25),
        ([0.0, 1.0], 1.0, 1.0),
        ([0.0, 1.0, 0.5], 0.25, 0.5),
        ([0.0, 1.0, 0.5], 0.5, 1.0),
        ([0.0, 1.0, 0.5], 0.75, 0.75),
        ([0.0, 1.0, 0.5], 1.0, 0.5),
        ([0.2, 0.4, 0.6, 0.8], 2 / 3, 0.6),
        ([0.7], 0.4, 0.7),
    ],
)
def test_a_gradient_is_piecewise_linear(gradient: list[float], t: float, expected: float) -> None:
    """Points are spread evenly over the depth, and values between them lie on the line."""
    assert value_of(gradient, t=t) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("t", "expected"), [(0.0, True), (0.49, True), (0.5, False), (1.0, True)])
def test_a_gradient_of_booleans_steps(t: float, expected: bool) -> None:
    """Of booleans the point at or before the depth counts: there is nothing between them."""
    assert value_of([True, False, True], t=t, kind="boolean") is expected


def test_the_first_filter_that_matches_wins() -> None:
    """A filter is a part of the tensor's name, and order is precedence."""
    setting = [
        {"filter": "q_proj", "value": 0.1},
        {"filter": "self_attn", "value": 0.2},
        {"filter": "mlp", "value": 0.3},
        {"value": 0.4},
    ]
    assert value_of(setting, Q0) == 0.1
    assert value_of(setting, Q0.replace("q_proj", "k_proj")) == 0.2
    assert value_of(setting, UP) == 0.3
    assert value_of(setting, HEAD) == 0.4


def test_a_star_or_no_filter_is_everything() -> None:
    """ "*", null and no filter at all mean the same."""
    for entry in ({"filter": "*", "value": 1.0}, {"filter": None, "value": 1.0}, {"value": 1.0}):
        assert value_of([entry], HEAD) == 1.0
        assert value_of(entry, HEAD) == 1.0


def test_no_matching_filter_is_no_value() -> None:
    """Where no filter matches the setting says nothing, and the next level is asked."""
    assert value_of([{"filter": "mlp", "value": 0.3}], Q0) is None


def test_a_filter_is_a_substring_not_a_pattern() -> None:
    """Dots and stars inside a filter are plain characters."""
    assert value_of([{"filter": "q.proj", "value": 1.0}], Q0) is None
    assert value_of([{"filter": "0.self_attn.q", "value": 1.0}], Q0) == 1.0


def test_a_filtered_value_may_be_a_gradient() -> None:
    """Gradients nest inside filters."""
    setting = [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}]
    assert value_of(setting, UP, t=0.75) == 0.75
    assert value_of(setting, Q0, t=0.75) == 0.5


def test_zero_is_a_value() -> None:
    """0 and false are values like others, and do not fall through to the next level."""
    assert value_of([{"filter": "mlp", "value": 0}, {"value": 1}], UP) == 0.0
    assert value_of(False, kind="boolean") is False


def test_a_chain_falls_through_to_the_next_setting() -> None:
    """What one setting does not say, the next one says; what follows a catch-all is dropped."""
    first = parse_setting([{"filter": "mlp", "value": 0.1}], "x", "number")
    second = parse_setting(
        [{"filter": "q_proj", "value": [0.2, 0.4]}, {"value": 0.3}], "x", "number"
    )
    third = parse_setting(0.9, "x", "number")
    chained = chain([first, second, third])
    assert [resolve(chained, name, 0.5) for name in (UP, Q0, HEAD)] == [
        0.1,
        pytest.approx(0.3),
        0.3,
    ]
    assert chained[-1] == Entry((0.3,))


@pytest.mark.parametrize(
    ("setting", "kind", "reasons"),
    [
        ("abc", "number", ["w: must be a number, got 'abc'"]),
        ("1e-5", "number", ["w: must be a number, got '1e-5' (text: YAML reads"]),
        (True, "number", ["w: must be a number, got True"]),
        (None, "number", ["w: must be a number, got None"]),
        (math.nan, "number", ["w: must be finite, got nan"]),
        (-math.inf, "number", ["w: must be finite, got -inf"]),
        (10**400, "number", ["w: must be finite, got 1000"]),
        ([], "number", ["w: the list is empty"]),
        ([0.1, math.inf, "x"], "number", ["w[1]: must be finite", "w[2]: must be a number"]),
        ([[0.1]], "number", ["w[0]: must be a number, got [0.1]"]),
        ({"value": math.nan}, "number", ["w.value: must be finite"]),
        ({"filter": "mlp"}, "number", ["w.value: is missing"]),
        ({"value": 1, "filters": "mlp"}, "number", ["w.filters: unknown key"]),
        ({"value": 1, "filter": 3}, "number", ["w.filter: must be part of a tensor's name, got 3"]),
        ({"value": 1, "filter": ""}, "number", ["w.filter: must be part of a tensor's name"]),
        ([{"value": [1, math.nan]}], "number", ["w[0].value[1]: must be finite"]),
        ([{"value": {"value": 1}}], "number", ["w[0].value: must be a number"]),
        ([{"value": 1}, 0.5], "number", ["w[1]: a list of {filter, value} cannot also hold 0.5"]),
        (1, "boolean", ["w: must be true or false, got 1"]),
        ([True, "no"], "boolean", ["w[1]: must be true or false, got 'no'"]),
    ],
)
def test_every_mistake_is_named_by_its_path(
    setting: object, kind: Kind, reasons: list[str]
) -> None:
    """Each wrong scalar, key or entry gives one reason, led by where it stands."""
    with pytest.raises(RecipeError) as error:
        parse_setting(setting, "w", kind)
    found = error.value.reasons
    assert len(found) == len(reasons)
    for reason, start in zip(found, reasons, strict=True):
        assert reason.startswith(start)


scalars = st.floats(-1e6, 1e6)
gradients = st.lists(scalars, min_size=1, max_size=5)
entries = st.fixed_dictionaries(
    {"value": scalars | gradients}, optional={"filter": st.sampled_from(["*", "mlp", "q_", "0"])}
)
settings = scalars | gradients | entries | st.lists(entries, min_size=1, max_size=4)
depths = st.floats(0, 1)
names = st.sampled_from([Q0, UP, HEAD])


@given(settings, names, depths)
def test_json_and_back_means_the_same(setting: object, name: str, t: float) -> None:
    """A setting written as JSON and read again resolves to the same value everywhere."""
    parsed = parse_setting(setting, "x", "number")
    again = parse_setting(setting_json(parsed), "x", "number")
    assert resolve(again, name, t) == resolve(parsed, name, t)


@given(gradients, depths)
def test_a_gradient_stays_between_its_points(gradient: list[float], t: float) -> None:
    """Interpolation never leaves the range of the points, and meets both ends."""
    value = value_of(gradient, t=t)
    assert isinstance(value, float)
    slack = 1e-9 * max(abs(point) for point in gradient)
    assert min(gradient) - slack <= value <= max(gradient) + slack
    assert value_of(gradient, t=0.0) == gradient[0]
    assert value_of(gradient, t=1.0) == gradient[-1]


@given(st.lists(settings, min_size=1, max_size=3), names, depths)
def test_a_chain_is_the_first_that_has_a_value(levels: list[object], name: str, t: float) -> None:
    """Chaining resolves as asking each level in turn."""
    parsed = [parse_setting(level, "x", "number") for level in levels]
    one_by_one = (resolve(level, name, t) for level in parsed)
    expected = next((value for value in one_by_one if value is not None), None)
    assert resolve(chain(parsed), name, t) == expected
