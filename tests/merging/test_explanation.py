"""Explanations group what is equal, and lose nothing."""

from hypothesis import given
from hypothesis import strategies as st

from merging.explanation import Group, group_coefficients


def named(values: dict[tuple[int | None, str], float]) -> dict[str, float]:
    return {
        kind if layer is None else f"model.layers.{layer}.{kind}": value
        for (layer, kind), value in values.items()
    }


def test_one_value_everywhere_is_one_group() -> None:
    """A scalar weight is a single line, whatever the number of layers."""
    values = {(i, kind): 0.5 for i in range(30) for kind in ("q_proj", "up_proj")}
    assert group_coefficients(named(values)) == (Group((0, 29), ("q_proj", "up_proj"), 0.5),)


def test_kinds_with_different_values_are_separate_runs() -> None:
    """A filter gives one group per value, each over all its layers."""
    values = {(i, kind): v for i in range(3) for kind, v in (("q_proj", 0.1), ("up_proj", 0.2))}
    assert group_coefficients(named(values)) == (
        Group((0, 2), ("q_proj",), 0.1),
        Group((0, 2), ("up_proj",), 0.2),
    )


def test_a_gradient_is_a_group_per_layer() -> None:
    """Values that change from layer to layer are not joined."""
    groups = group_coefficients(named({(i, "q_proj"): i / 4 for i in range(5)}))
    assert [(group.layers, group.coefficient) for group in groups] == [
        ((i, i), i / 4) for i in range(5)
    ]


def test_a_gap_ends_a_run() -> None:
    """Layers that the source does not touch are not claimed."""
    groups = group_coefficients(named({(i, "q_proj"): 1.0 for i in (0, 1, 3)}))
    assert [group.layers for group in groups] == [(0, 1), (3, 3)]


def test_modules_outside_the_layers_come_last() -> None:
    """The head has no layers."""
    groups = group_coefficients(named({(None, "lm_head"): 1.0, (0, "q_proj"): 1.0}))
    assert groups == (Group((0, 0), ("q_proj",), 1.0), Group(None, ("lm_head",), 1.0))


keys = st.tuples(st.none() | st.integers(0, 12), st.sampled_from(["q", "k", "up"]))


@given(st.dictionaries(keys, st.sampled_from([0.0, 0.5, 1.0])))
def test_expanding_the_groups_gives_back_every_module_once(
    values: dict[tuple[int | None, str], float],
) -> None:
    """Grouping is lossless: each module is in exactly one group, with its own value."""
    expanded: list[tuple[tuple[int | None, str], float]] = []
    for group in group_coefficients(named(values)):
        span = [None] if group.layers is None else range(group.layers[0], group.layers[1] + 1)
        expanded += [((i, kind), group.coefficient) for i in span for kind in group.modules]
    assert len(expanded) == len(values)
    assert dict(expanded) == values
