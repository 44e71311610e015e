"""What cannot be planned is refused, with every reason and the names of tensors."""

from typing import Any

import pytest
import torch

from merging.errors import PlanError
from merging.plan import plan
from merging.recipe import Recipe
from tests.merging.naive import MemoryWeights, State, perturbed, state_of
from tests.merging.tiny import base_of, flat_adapter, tiny_llama

NUM_LAYERS = 2
BASE, BASE_STATE = base_of(tiny_llama(NUM_LAYERS)), state_of(tiny_llama(NUM_LAYERS))
RESIDENT = MemoryWeights(BASE_STATE, "resident")
Q0 = "model.layers.0.self_attn.q_proj.weight"
MATH = flat_adapter(BASE, "sha256:1")
SOURCES: dict[str, Any] = {
    "math": MATH,
    "code": flat_adapter(BASE, "sha256:2"),
    "full": MemoryWeights(perturbed(BASE_STATE, 1), "full"),
}


def checkpoint(change: State, without: tuple[str, ...] = ()) -> MemoryWeights:
    state = {name: tensor for name, tensor in BASE_STATE.items() if name not in without}
    return MemoryWeights(state | change, "changed")


def reasons(
    method: str, sources: dict[str, Any], given: Any = None, weights: Any = RESIDENT, **fields: Any
) -> tuple[str, ...]:
    recipe = Recipe.model_validate({"method": method, "sources": sources, **fields})
    with pytest.raises(PlanError) as error:
        plan(recipe, {**SOURCES, **(given or {})}, BASE, weights=weights)
    return error.value.reasons


W1 = {"weight": 1}
T = {"parameters": {"t": 0.5}}


@pytest.mark.parametrize(
    ("method", "sources", "fields", "reason"),
    [
        (
            "slerp",
            {"math": {}, "code": {}},
            T,
            "sources: slerp takes 1 source beside base_model 'base', and got 2: code, math; one of "
            "them may be the base_model",
        ),
        (
            "nuslerp",
            {"math": W1},
            {"base_model": None},
            "sources: nuslerp takes 2 sources, and got 1: math",
        ),
        (
            "model_stock",
            {"math": {}},
            {},
            "sources: model_stock takes at least 2 sources beside base_model 'base', and got 1",
        ),
        ("passthrough", {"math": {}, "base": {}}, {}, "sources: passthrough takes 1 source, and"),
        ("ties", {"math": W1}, {"base_model": None}, "base_model: ties needs one, and got null"),
        (
            "ties",
            {"math": W1},
            {"base_model": "nobody"},
            "sources.nobody: is not a registered source; registered are: code, full, math",
        ),
        (
            "ties",
            {"math": W1},
            {"slices": [{"sources": [{"model": "math", "layer_range": [1, 3]}]}]},
            "slices[0]: layers up to 3 are asked for, and the base has 2",
        ),
        (
            "passthrough",
            {"math": {}, "code": {}},
            {
                "slices": [
                    {"sources": [{"model": "math", "layer_range": [0, 1]}]},
                    {
                        "sources": [
                            {"model": "math", "layer_range": [0, 1]},
                            {"model": "code", "layer_range": [1, 2]},
                        ]
                    },
                ]
            },
            "slices[1]: sources: passthrough takes 1 source, and got 2: code, math",
        ),
    ],
)
def test_models_that_do_not_suit_the_method(
    method: str, sources: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    """Too few or too many models, a base_model that is missing, layers that are not there."""
    (found,) = reasons(method, sources, **fields)
    assert found.startswith(reason)


WIDE = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (checkpoint({}, (Q0,)), f"sources.x: {Q0}: is missing"),
        (checkpoint({WIDE: torch.zeros(3, 3)}), f"sources.x: {WIDE}: is [3, 3], and the base's is"),
        (
            checkpoint({"model.embed_tokens.weight": torch.zeros(41, 16)}),
            "sources.x: model.embed_tokens.weight: has 41 rows, and the base's has 40: it has "
            "another vocabulary",
        ),
        (checkpoint({}, ("lm_head.weight",)), "sources.x: lm_head.weight: is missing"),
        (
            checkpoint({"model.layers.2.mlp.up_proj.weight": torch.zeros(24, 16)}),
            "sources.x: has tensors that the base has not: model.layers.2.mlp.up_proj.weight",
        ),
        (
            checkpoint({"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}),
            "sources.x: has tensors that the base has not: model.layers.0.self_attn.q_proj.bias",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_tensor(
    weights: MemoryWeights, reason: str
) -> None:
    """Missing and unexpected tensors, shapes and vocabularies, as a source and as base_model."""
    (found,) = reasons("ties", {"x": W1}, {"x": weights})
    assert found.startswith(reason)
    (found,) = reasons("slerp", {"math": {}}, {"x": weights}, base_model="x", **T)
    assert found.startswith(reason)


def test_tensors_that_are_computed_on_loading_may_be_left_over() -> None:
    """Old checkpoints hold rotary frequencies and masks; they are none of the model's."""
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    recipe = Recipe(method="ties", sources={"x": W1})
    made = plan(recipe, {"x": checkpoint(old)}, BASE, weights=RESIDENT)
    assert made.variant is not None
    assert {tensor.name for tensor in made.variant.tensors} == set(BASE_STATE)
    recipe = Recipe(method="ties", sources={"math": W1})
    resident = MemoryWeights(BASE_STATE | old, "resident")
    assert plan(recipe, SOURCES, BASE, weights=resident).path == "variant"


def test_every_reason_comes_at_once() -> None:
    """Models, values and tensors are all looked at before anything is refused."""
    found = reasons(
        "della",
        {"x": {"weight": 1, "density": 0.99}, "nobody": W1},
        {"x": checkpoint({WIDE: torch.zeros(3, 3)}, (Q0,))},
        base_model=None,
    )
    starts = ["sources.nobody", "base_model", "", "sources.x: model", "sources.x: model"]
    assert len(found) == len(starts), found
    assert all(reason.startswith(start) for reason, start in zip(found, starts, strict=True))


@pytest.mark.parametrize(
    ("method", "sources", "fields", "reason"),
    [
        ("ties", {"math": W1}, {}, "ties keeps or drops each element"),
        ("slerp", {"math": {}}, T, "slerp needs the tensors of the base"),
        (
            "linear",
            {"math": {"weight": 0.7}},
            {"parameters": {"normalize": False}},
            "linear scales the base itself by 0.7, its norms and embeddings too",
        ),
        ("task_arithmetic", {"full": W1}, {}, "source full is a full checkpoint"),
    ],
)
def test_without_the_base_s_files_only_linear_methods_of_adapters_are_possible(
    method: str, sources: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    """A base whose files cannot be mapped can still be blended; what needs more says why."""
    (found,) = reasons(method, sources, weights=None, **fields)
    assert found.startswith(reason)
    assert "the files of the base could not be mapped" in found


def test_the_rest_given_to_the_base_makes_a_sum_of_one() -> None:
    """linear without normalize is a blend where its weights sum to 1."""
    sources = {"math": {"weight": 0.7}, "base": {"weight": 0.3}}
    recipe = Recipe(method="linear", sources=sources, parameters={"normalize": False})
    made = plan(recipe, SOURCES, BASE)
    assert made.path == "blend"
    assert made.blend.base_scales is None


def test_barycentres_without_a_direction_are_refused_by_module() -> None:
    """Weights that cancel have no result; the reason names the linear layers."""
    sources = {"math": {"weight": 1}, "code": {"weight": -1}}
    found = reasons("multislerp", sources, base_model=None)
    assert "sum to 0" in found[0]
