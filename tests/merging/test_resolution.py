"""A recipe resolves to the values of its parameters for every tensor; golden values by hand."""

from typing import Any

from merging.layout import Layout, lay_out, tensor_names
from merging.methods import METHODS
from merging.recipe import Recipe
from merging.resolution import Resolution, resolve_recipe
from tests.merging.tiny import flat_base

BASE = flat_base(num_layers=3)
"""Its tensors: q_proj and up_proj of layers 0, 1 and 2, then the head."""

SHAPES = {"embed.weight": (8, 4)} | {f"{module}.weight": (4, 4) for module in BASE.linears}


def layout(recipe: Recipe, shapes: dict[str, tuple[int, ...]] | None = None) -> Layout:
    return lay_out(recipe.sections(BASE.num_layers), BASE, tensor_names(BASE, shapes))


def resolve(
    sources: dict[str, Any],
    method: str = "task_arithmetic",
    shapes: dict[str, tuple[int, ...]] | None = None,
    **fields: Any,
) -> Resolution:
    recipe = Recipe.model_validate({"method": method, "sources": sources, **fields})
    return resolve_recipe(recipe, layout(recipe, shapes))


def values(resolved: Resolution, source: str, name: str = "weight") -> list[object]:
    """A source's values, in the order of the tensors."""
    assert resolved.reasons == ()
    return [own.of_source(source, name) for own in resolved.tensors]


def test_a_scalar_is_the_same_everywhere() -> None:
    """A plain weight is the weight of every tensor, and all tensors share what is resolved."""
    resolved = resolve({"a": {"weight": 0.6}})
    assert resolved.warnings == ()
    assert values(resolved, "a") == [0.6] * 7
    assert len({id(own) for own in resolved.tensors}) == 1


def test_a_gradient_runs_over_the_layers_and_the_rest_takes_its_start() -> None:
    """Layer i of three has t = i / 2; tensors outside the layers have t = 0."""
    resolved = resolve({"a": {"weight": [0.2, 0.8]}}, shapes=SHAPES)
    assert values(resolved, "a") == [0.2, 0.2, 0.2, 0.5, 0.5, 0.8, 0.8, 0.2]


def test_filters_choose_tensors_by_their_full_names() -> None:
    """A filter may contain a layer and `.weight`, as names of tensors do."""
    setting = [{"filter": "up_proj.weight", "value": 1}, {"filter": "layers.2", "value": 2}]
    resolved = resolve({"a": {"weight": [*setting, {"value": 0}]}})
    assert values(resolved, "a") == [0, 1, 0, 1, 2, 1, 0]


def test_recipe_parameters_are_settings_too() -> None:
    """lambda and normalize are resolved per tensor."""
    normalize = [{"filter": "mlp", "value": True}, {"value": False}]
    resolved = resolve({"a": {"weight": 1}}, parameters={"lambda": [1, 3], "normalize": normalize})
    assert [own.values["lambda"] for own in resolved.tensors] == [1, 1, 2, 2, 3, 3, 1]
    assert [own.values["normalize"] for own in resolved.tensors] == [False, True] * 3 + [False]


def slices(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"slices": list(parts)}


def part(low: int, high: int, own: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    source = {"model": "a", "layer_range": [low, high], "parameters": own or {}}
    base = {"model": "base", "layer_range": [low, high]}
    return {"sources": [source, base], **fields}


def test_precedence_is_source_slice_recipe_default() -> None:
    """In a slice: the source's setting there, its own, the slice's, the recipe's, the default."""
    mlp, q = {"filter": "mlp", "value": 1}, {"filter": "q_proj", "value": 2}
    stack = slices(
        part(0, 1, {"weight": [mlp]}, parameters={"weight": 9}),
        part(1, 2, parameters={"weight": [mlp]}),
        part(2, 3, parameters={"lambda": 5}),
    )
    resolved = resolve({"a": {"weight": [q]}}, parameters={"weight": 4, "lambda": 3}, **stack)
    assert values(resolved, "a") == [2, 1, 2, 1, 2, 4, 4]
    assert [own.values["lambda"] for own in resolved.tensors] == [3, 3, 3, 3, 5, 5, 5]
    assert {own.values["normalize"] for own in resolved.tensors} == {False}


def test_gradients_run_inside_each_slice() -> None:
    """t starts anew in every slice; a slice of one layer takes the gradient's end."""
    stack = slices(part(0, 3), part(2, 3))
    resolved = resolve({"a": {"weight": [0.0, 1.0]}}, **stack)
    assert values(resolved, "a") == [0, 0, 0.5, 0.5, 1, 1, 1, 1, 0]


def test_filters_see_the_input_s_name_for_a_source_and_the_output_s_for_the_recipe() -> None:
    """Layer 2 of the source, as layer 0 of the result, is layers.2 to its weight."""
    two = [{"filter": "layers.2", "value": 2}, {"value": 1}]
    resolved = resolve({"a": {"weight": two}}, parameters={"lambda": two}, **slices(part(2, 3)))
    assert values(resolved, "a") == [2, 2, 1]
    assert [own.values["lambda"] for own in resolved.tensors] == [1, 1, 1]


def test_values_are_what_the_method_takes() -> None:
    """A resolved tensor can be given to its method as it is: sources are sorted by name."""
    resolved = resolve({"b": {"weight": 3}, "a": {"weight": 1}}, "linear")
    combination = METHODS["linear"].combine(resolved.tensors[0].values)
    assert combination.coefficients == (0.25, 0.75)


def test_a_sum_of_zero_names_its_tensors() -> None:
    """Only the tensors whose weights cancel are named."""
    sources = {
        "a": {"weight": [{"filter": "layers.1", "value": -1}, {"value": 2}]},
        "b": {"weight": 1},
    }
    (reason,) = resolve(sources, "linear").reasons
    assert "sum to 0" in reason
    names = "model.layers.1.self_attn.q_proj.weight, model.layers.1.mlp.up_proj.weight"
    assert reason.endswith(f"({names})")


def test_what_an_elementwise_method_cannot_do_is_known_without_tensors() -> None:
    """Probabilities out of range are refused before anything is built."""
    (reason,) = resolve({"a": {"weight": 1, "density": 0.95, "epsilon": 0.2}}, "della").reasons
    assert "0.95" in reason


def test_a_tensor_that_no_filter_matches_is_an_error() -> None:
    """A required parameter must have a value for every tensor; the reason says what is missing."""
    (reason,) = resolve({"a": {"weight": [{"filter": "mlp", "value": 1}]}}).reasons
    assert reason.startswith("sources.a.weight: no filter matches; add an entry without a filter")
    assert "lm_head" in reason
    (reason,) = resolve({"a": {}}, "slerp", parameters={"t": {"filter": "q_", "value": 1}}).reasons
    assert reason.startswith("parameters.t: no filter matches")


def test_all_reasons_come_at_once() -> None:
    """Different tensors may fail for different reasons."""
    sources = {
        "a": {"weight": [{"filter": "mlp", "value": 1}, {"filter": "attn", "value": -1}]},
        "b": {"weight": 1},
    }
    assert len(resolve(sources, "linear").reasons) == 2


def test_a_filter_that_matches_nothing_is_a_warning() -> None:
    """A filter may be meant for tensors that are not known, or be a slip: it is said."""
    setting = [{"filter": "embed", "value": 1}, {"filter": "mlp", "value": 2}, {"value": 3}]
    (warning,) = resolve({"a": {"weight": setting}, "b": {"weight": setting}}).warnings
    assert warning == "weight: filter 'embed' matches no linear layer of the base"
    assert resolve({"a": {"weight": setting}}, shapes=SHAPES).warnings == ()
    setting[0] = {"filter": "mlpp", "value": 1}
    (warning,) = resolve({"a": {"weight": setting}}, shapes=SHAPES).warnings
    assert warning == "weight: filter 'mlpp' matches no tensor of the base"
