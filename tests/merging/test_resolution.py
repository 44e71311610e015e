"""A recipe resolves to one coefficient per source and linear layer; golden values by hand."""

from typing import Any

import pytest

from merging.recipe import Recipe
from merging.resolution import Resolution, resolve_recipe
from tests.merging.tiny import flat_base

BASE = flat_base(num_layers=3)
"""Columns: q_proj and up_proj of layers 0, 1 and 2, then the head."""


def resolve(sources: dict[str, Any], method: str = "task_arithmetic", **fields: Any) -> Resolution:
    recipe = Recipe.model_validate({"method": method, "sources": sources, **fields})
    return resolve_recipe(recipe, BASE)


def test_a_scalar_is_the_same_everywhere() -> None:
    """A plain weight gives every linear layer the same coefficient."""
    resolved = resolve({"a": {"weight": 0.6}})
    assert resolved.reasons == resolved.warnings == ()
    assert resolved.coefficients["a"].tolist() == [0.6] * 7


def test_a_gradient_runs_over_the_layers_and_the_head_takes_its_start() -> None:
    """Layer i of three has t = i / 2; tensors outside the layers have t = 0."""
    resolved = resolve({"a": {"weight": [0.2, 0.8]}})
    assert resolved.coefficients["a"].tolist() == [0.2, 0.2, 0.5, 0.5, 0.8, 0.8, 0.2]


def test_filters_choose_tensors_by_their_full_names() -> None:
    """A filter may contain a layer and `.weight`, as names of tensors do."""
    setting = [{"filter": "up_proj.weight", "value": 1}, {"filter": "layers.2", "value": 2}]
    resolved = resolve({"a": {"weight": [*setting, {"value": 0}]}})
    assert resolved.coefficients["a"].tolist() == [0, 1, 0, 1, 2, 1, 0]


def test_lambda_multiplies_and_may_be_a_setting() -> None:
    """lambda is resolved per tensor too."""
    resolved = resolve({"a": {"weight": 0.5}}, parameters={"lambda": [1, 3]})
    assert resolved.coefficients["a"].tolist() == [0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 0.5]


def test_normalize_may_differ_by_tensor() -> None:
    """A boolean setting switches normalisation for some tensors only."""
    normalize = [{"filter": "mlp", "value": True}, {"value": False}]
    sources = {"a": {"weight": 1}, "b": {"weight": 3}}
    resolved = resolve(sources, parameters={"normalize": normalize})
    assert resolved.coefficients["a"].tolist() == [1, 0.25, 1, 0.25, 1, 0.25, 1]


def test_linear_divides_by_the_sum_at_each_tensor() -> None:
    """Shares are of the weights that the tensor has, the base's among them."""
    sources = {"base": {"weight": 1}, "a": {"weight": [0, 1]}, "b": {"weight": 1}}
    resolved = resolve(sources, "linear")
    thirds = pytest.approx([0, 0, 0.2, 0.2, 1 / 3, 1 / 3, 0])
    assert resolved.coefficients["a"].tolist() == thirds
    assert resolved.coefficients["base"].tolist()[:2] == [0.5, 0.5]


def test_linear_without_normalize_must_sum_to_one() -> None:
    """Another sum would scale the base itself; the reason says so, and three ways out."""
    resolved = resolve(
        {"a": {"weight": 0.5}, "b": {"weight": 0.2}}, "linear", parameters={"normalize": False}
    )
    (reason,) = resolved.reasons
    assert "the weights sum to 0.7" in reason
    assert "set normalize to true" in reason
    assert "task_arithmetic" in reason
    assert "'base' the rest, 0.3" in reason
    assert "model.layers.0.self_attn.q_proj" in reason
    assert "and 3 more" in reason


def test_the_ways_out_of_an_unnormalized_sum_work() -> None:
    """With the rest given to the base, linear without normalize is the plain weighted sum."""
    sources = {"a": {"weight": 0.5}, "b": {"weight": 0.2}, "base": {"weight": 0.3}}
    resolved = resolve(sources, "linear", parameters={"normalize": False})
    assert resolved.reasons == ()
    assert resolved.coefficients["a"].tolist() == [0.5] * 7


def test_a_sum_of_zero_names_its_tensors() -> None:
    """Only the tensors whose weights cancel are named."""
    sources = {
        "a": {"weight": [{"filter": "layers.1", "value": -1}, {"value": 2}]},
        "b": {"weight": 1},
    }
    (reason,) = resolve(sources, "linear").reasons
    assert "sum to 0" in reason
    assert reason.endswith("(model.layers.1.self_attn.q_proj, model.layers.1.mlp.up_proj)")


def test_a_tensor_that_no_filter_matches_is_an_error() -> None:
    """A required parameter must have a value for every tensor; the reason says what is missing."""
    (reason,) = resolve({"a": {"weight": [{"filter": "mlp", "value": 1}]}}).reasons
    assert reason.startswith("sources.a.weight: no filter matches; add an entry without a filter")
    assert "lm_head" in reason


def test_a_coefficient_must_fit_float32() -> None:
    """Finite weights whose product is not are refused by source."""
    big = resolve({"a": {"weight": 1e30}, "b": {"weight": 1}}, parameters={"lambda": 1e30})
    (reason,) = big.reasons
    assert reason.startswith("sources.a: its coefficient, 1e+60, is not a finite float32")
    overflow = resolve({"a": {"weight": 1e200}}, parameters={"lambda": 1e200})
    assert "inf, is not a finite float32" in overflow.reasons[0]


def test_all_reasons_come_at_once() -> None:
    """Different tensors may fail for different reasons."""
    sources = {
        "a": {"weight": [{"filter": "mlp", "value": 1}, {"filter": "attn", "value": -1}]},
        "b": {"weight": 1},
    }
    assert len(resolve(sources, "linear").reasons) == 2


def test_a_filter_that_matches_nothing_is_a_warning() -> None:
    """A filter may be meant for tensors that are not linear layers, or be a slip: it is said."""
    setting = [{"filter": "mlpp", "value": 1}, {"filter": "mlp", "value": 2}, {"value": 3}]
    (warning,) = resolve({"a": {"weight": setting}, "b": {"weight": setting}}).warnings
    assert warning == "weight: filter 'mlpp' matches no linear layer of the base"
