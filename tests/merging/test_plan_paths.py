"""Whatever path a plan takes, the result is that of merging whole models by the definitions."""

from typing import Any

import pytest
import torch

from merging.adapter import Adapter
from merging.plan import Plan, plan
from merging.recipe import Recipe
from tests.merging.naive import (
    MemoryWeights,
    State,
    blended,
    built,
    merge,
    perturbed,
    random_adapter,
    state_of,
    with_adapter,
)
from tests.merging.tiny import base_of, tiny_llama

NUM_LAYERS = 3
MODEL = tiny_llama(num_layers=NUM_LAYERS)
BASE, BASE_STATE = base_of(MODEL), state_of(MODEL)
RESIDENT = MemoryWeights(BASE_STATE, "resident")


SOURCES: dict[str, Any] = {
    "attn": random_adapter(BASE, "sha256:3", 2, "self_attn"),
    "proj": random_adapter(BASE, "sha256:1", 3, "_proj"),
    "head": random_adapter(BASE, "sha256:2", 1, "lm_head"),
    "full": MemoryWeights(perturbed(BASE_STATE, 1), "full"),
    "deep": MemoryWeights(perturbed(BASE_STATE, 2), "deep"),
}
STATES: dict[str, State] = {
    name: with_adapter(BASE_STATE, source, BASE) if isinstance(source, Adapter) else source.tensors
    for name, source in SOURCES.items()
} | {"base": BASE_STATE}
# As in a plan, an adapter that is merged as a whole model has another digest; only methods that
# draw random numbers look at it, and they are tested relative to the base.
DIGESTS = {name: source.digest for name, source in SOURCES.items()} | {"base": RESIDENT.digest}


def make(recipe: Recipe) -> Plan:
    return plan(recipe, SOURCES, BASE, weights=RESIDENT)


def check(recipe: Recipe, path: str) -> Plan:
    """The plan takes this path, and gives what merging whole models gives."""
    made = make(recipe)
    assert made.path == path, made.reason
    if made.variant is None:
        merged = blended(made.blend, BASE, BASE_STATE)
    else:
        assert not made.blend.adapters
        merged = built(made.variant)
    num_layers = len(made.variant.layers) if made.variant is not None else NUM_LAYERS
    expected = merge(recipe, STATES, num_layers, DIGESTS)
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    return made


def recipe(method: str, *sources: str, **fields: Any) -> Recipe:
    """Equal weights for methods that take them, unless the fields say otherwise."""
    weighted = method not in ("slerp", "karcher", "model_stock", "nearswap", "arcee_fusion", "sce")
    weighted = weighted and method not in ("ram", "ramplus_tl", "passthrough", "expo")
    settings = {
        name: {"weight": 0.3 + index / 4} if weighted else {} for index, name in enumerate(sources)
    }
    return Recipe.model_validate({"method": method, "sources": settings, **fields})


T = {"parameters": {"t": [0.2, 0.9]}}
MLP_ONLY = [{"filter": "mlp", "value": 0.5}, {"value": 1.0}]

BLENDS = [
    recipe("task_arithmetic", "attn", "proj", "head", parameters={"lambda": [0.5, 1.5]}),
    recipe("task_arithmetic", "attn", base_model="proj"),
    recipe("linear", "attn", "proj", "base"),
    recipe("slerp", "proj", **T),
    recipe("slerp", "attn", base_model="proj", **T),
    recipe("nuslerp", "attn", "proj"),
    recipe("nuslerp", "attn", "proj", base_model=None),
    recipe("nuslerp", "attn", "base", base_model=None),
    recipe("multislerp", "attn", "proj", "head", base_model=None),
    recipe("karcher", "attn", "proj"),
    recipe("karcher", "attn", "proj", "base"),
    recipe("model_stock", "attn", "proj"),
    recipe("model_stock", "attn", "head", base_model="proj"),
]
"""Recipes of adapters that are combinations on every linear layer, and leave all else alone."""


@pytest.mark.parametrize("one", BLENDS, ids=lambda r: f"{r.method}-{r.base_model}")
def test_a_blend_is_the_merge_of_whole_models(one: Recipe) -> None:
    """Coefficients and factors on the base give the weights that merging whole models gives."""
    check(one, "blend")


VARIANTS = [
    recipe("ties", "attn", "proj"),
    recipe("ties", "attn", "full", parameters={"density": MLP_ONLY}),
    recipe("ties", "full", "deep", base_model="proj"),
    recipe("ties", "attn", "proj", base_model="full", parameters={"density": 0.5}),
    recipe("ties", "base", "full", base_model="deep"),
    recipe("dare_ties", "attn", "full", parameters={"density": 0.5}, seed=7),
    recipe("task_arithmetic", "attn", "full"),
    recipe("linear", "attn", "full", "base"),
    recipe("linear", "attn", "proj", parameters={"normalize": False}),
    recipe("slerp", "full", **T),
    recipe("slerp", "full", base_model="deep", **T),
    recipe("slerp", "base", base_model="deep", **T),
    recipe("slerp", "attn", base_model="full", **T),
    recipe("nuslerp", "attn", "proj", parameters={"nuslerp_flatten": False}),
    recipe("nuslerp", "attn", "full", base_model=None),
    recipe("multislerp", "attn", "proj", base_model=None, parameters={"normalize_weights": False}),
    recipe("karcher", "attn", "full", "deep"),
    recipe("model_stock", "attn", "full"),
    recipe("model_stock", "attn", "proj", parameters={"filter_wise": True}),
    recipe("nearswap", "attn", parameters={"t": 0.001}),
    recipe("arcee_fusion", "full", base_model="attn"),
    recipe("passthrough", "full", parameters={"scale": [0.5, 1.5]}),
    recipe("passthrough", "attn", parameters={"scale": 2}),
]
"""Recipes that must be written: elementwise, of checkpoints, by row, or scaling the base."""


@pytest.mark.parametrize("one", VARIANTS, ids=lambda r: f"{r.method}-{r.base_model}")
def test_a_variant_is_the_merge_of_whole_models(one: Recipe) -> None:
    """Every written tensor, and every shared one, is that of merging whole models."""
    check(one, "variant")


def part(*models: tuple[str, int, int], **fields: Any) -> dict[str, Any]:
    """One slice."""
    sources = [{"model": name, "layer_range": [low, high]} for name, low, high in models]
    return {"sources": sources, **fields}


STACKS = [
    recipe("passthrough", "base", slices=[part(("base", 0, 2)), part(("base", 1, 3))]),
    recipe(
        "passthrough",
        *("base", "attn", "full"),
        slices=[part(("attn", 0, 2)), part(("base", 1, 2)), part(("full", 0, 3))],
    ),
    recipe(
        "ties",
        *("attn", "full"),
        slices=[
            part(("attn", 0, 2), ("base", 0, 2), ("full", 1, 3), parameters={"density": [0.2, 1]}),
            part(("attn", 1, 3)),
            part(("full", 0, 1), ("deep", 2, 3), base_model="deep"),
        ],
    ),
    recipe(
        "linear",
        *("attn", "deep"),
        slices=[part(("attn", 1, 3), ("deep", 0, 2)), part(("deep", 2, 3))],
        parameters={"weight": [0.1, 0.9]},
    ),
    recipe(
        "slerp",
        "proj",
        slices=[part(("base", 0, 2), ("proj", 1, 3)), part(("base", 2, 3), ("proj", 2, 3))],
        **T,
    ),
    recipe("slerp", "full", slices=[part(("base", 0, 3), ("full", 0, 3))], **T),
]
"""Recipes with slices: more or fewer layers, other layers side by side, other bases."""


@pytest.mark.parametrize("one", STACKS, ids=lambda r: r.method)
def test_a_stack_is_the_merge_of_whole_models(one: Recipe) -> None:
    """Slices take the layers that they name, with gradients and settings of their own."""
    check(one, "variant")


def test_slices_that_stack_nothing_are_a_blend() -> None:
    """Slices of adapters that keep every layer at its place only set coefficients by layer."""
    slices = [
        part(("attn", 0, 1), ("base", 0, 1)),
        part(("proj", 1, 3), ("attn", 1, 3), parameters={"lambda": [1.0, 3.0]}),
    ]
    check(recipe("task_arithmetic", "attn", "proj", slices=slices), "blend")
