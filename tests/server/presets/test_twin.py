"""Exactness of twins, against dense arithmetic: what is claimed holds in every tensor."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from merging.adapter import Adapter
from merging.plan import Plan
from merging.recipe import BASE
from server.presets.document import PresetDocument
from server.presets.planner import Planner
from server.presets.twin import make_twin
from tests.merging.plans import whole
from tests.server.presets.forge import VariantWorld, write_checkpoint
from tests.server.presets.tiny import preset, tiny_base

Tensors = Mapping[str, torch.Tensor]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[VariantWorld]:
    """The adapters math and code, the checkpoints ft and other."""
    world = VariantWorld(tmp_path)
    catalog = world.open_with_sources()
    catalog.add_source("other", write_checkpoint(world.sources / "other", 2))
    yield world
    world.close()


def plan_of(world: VariantWorld, document: PresetDocument) -> Plan:
    return Planner(tiny_base(), world.resident).plan_document(
        document, world.catalog._snapshot.sources
    )


def base_of(world: VariantWorld) -> Tensors:
    return {name: world.resident.tensor(name).clone() for name in world.resident.shapes}


def model_of(world: VariantWorld, plan: Plan, name: str) -> Tensors:
    """The tensors of a source as a whole model."""
    source, base = plan.sources[name], base_of(world)
    if not isinstance(source, Adapter):
        return {name: source.tensor(name) for name in source.shapes}
    for module, own in source.factors.items():
        base[f"{module}.weight"] = base[f"{module}.weight"] + own.scale * own.b @ own.a
    return base


def merged(world: VariantWorld, plan: Plan) -> Tensors:
    """What the plan makes of the base."""
    tensors = dict(base_of(world))
    if plan.variant is not None:
        shared = {name: tensors[tensor] for name, tensor in plan.variant.shared.items()}
        return shared | whole(plan.variant)
    for index, module in enumerate(tiny_base().linears):
        name = f"{module}.weight"
        if plan.blend.base_scales is not None:
            tensors[name] = tensors[name] * plan.blend.base_scales[index]
        for adapter, row in zip(plan.blend.adapters, plan.blend.coefficients, strict=True):
            if own := adapter.factors.get(module):
                tensors[name] = tensors[name] + row[index] * own.scale * own.b @ own.a
    return tensors


def ensembled(world: VariantWorld, plan: Plan, rows: Mapping[str, float]) -> Tensors:
    """The weighted sum of whole models that an ensemble's logits are, to first order."""
    models = {n: base_of(world) if n == BASE else model_of(world, plan, n) for n in rows}
    return {
        name: sum((value * models[n][name] for n, value in rows.items()), torch.zeros(()))
        for name in base_of(world)
    }


def weights(**sources: object) -> dict[str, object]:
    return {name: {"weight": weight} for name, weight in sources.items()}


def slices(*parts: tuple[str, int, int]) -> list[dict[str, object]]:
    return [
        {"sources": [{"model": model, "layer_range": [low, high]}]} for model, low, high in parts
    ]


UNSCALED = {"normalize": False}
RECIPES = {
    "blend": ({"sources": weights(math=0.5, code=0.25)}, True),
    "lambda": ({"sources": weights(math=0.5), "parameters": {"lambda": 2.0}}, True),
    "gradient": ({"sources": weights(math=[0, 1])}, False),
    "filter": ({"sources": weights(math=[{"filter": "mlp", "value": 1}, {"value": 0}])}, False),
    "checkpoint": ({"sources": weights(ft=0.5, math=0.25)}, True),
    "checkpoint, gradient": ({"sources": weights(ft=[0, 1])}, False),
    "on another base": ({"base_model": "other", "sources": weights(ft=0.5, math=0.25)}, True),
    "on an adapter": ({"base_model": "code", "sources": weights(math=0.25)}, True),
    "mean of adapters": ({"method": "linear", "sources": weights(math=1, code=3)}, True),
    "mean with the base": ({"method": "linear", "sources": weights(math=1, base=3)}, True),
    "mean of checkpoints": ({"method": "linear", "sources": weights(ft=1, other=3)}, True),
    "mean of all kinds": ({"method": "linear", "sources": weights(ft=1, math=3, base=1)}, True),
    "sum of adapters": (
        {"method": "linear", "sources": weights(math=1, code=1), "parameters": UNSCALED},
        False,
    ),
    "sum of adapters that is one": (
        {"method": "linear", "sources": weights(math=0.75, code=0.25), "parameters": UNSCALED},
        True,
    ),
    "sum of checkpoints": (
        {"method": "linear", "sources": weights(ft=1, other=1), "parameters": UNSCALED},
        False,
    ),
    "sum of checkpoints that is one": (
        {"method": "linear", "sources": weights(ft=0.5, other=0.5), "parameters": UNSCALED},
        True,
    ),
    "sum of all kinds": (
        {"method": "linear", "sources": weights(ft=0.5, math=1, base=1), "parameters": UNSCALED},
        False,
    ),
    "passthrough": ({"method": "passthrough", "sources": {"ft": {}}}, True),
    "passthrough, scaled": ({"method": "passthrough", "sources": {"ft": {"scale": 2}}}, False),
    "passthrough of an adapter, scaled": (
        {"method": "passthrough", "sources": {"math": {"scale": 2}}},
        False,
    ),
    "layers of two checkpoints": (
        {
            "method": "passthrough",
            "sources": {"ft": {}, "other": {}},
            "slices": slices(("ft", 0, 1), ("other", 1, 2)),
        },
        False,
    ),
    "layers of a checkpoint and the base": (
        {
            "method": "passthrough",
            "sources": {"ft": {}, "base": {}},
            "slices": slices(("ft", 0, 1), ("base", 1, 2)),
        },
        False,
    ),
    "layers in another order": (
        {
            "method": "passthrough",
            "sources": {"ft": {}},
            "slices": slices(("ft", 1, 2), ("ft", 0, 1)),
        },
        False,
    ),
    "expo": (
        {"method": "expo", "sources": {"ft": {}}, "parameters": {"alpha": 0.5}},
        True,
    ),
    "lines": (
        {"method": "lines", "sources": weights(ft=1), "parameters": {"alpha": 1, "beta": 0.5}},
        False,
    ),
    "lines that do not grow": (
        {"method": "lines", "sources": weights(ft=1), "parameters": {"alpha": 0.5, "beta": 0}},
        True,
    ),
}


@pytest.mark.parametrize(("fields", "exact"), RECIPES.values(), ids=RECIPES)
def test_exactness_is_what_the_weights_say(
    world: VariantWorld, fields: dict[str, object], exact: bool
) -> None:
    """A twin is called exact if and only if the merge is the weighted sum of whole models that its
    rows say, in every tensor: of blends and variants, for each linear method.
    """
    document = preset(**{"sources": {}, **fields})
    plan = plan_of(world, document)
    twin = make_twin(document.ensemble, plan, document.base_model)
    assert twin.is_exact is exact
    rows = dict(zip(twin.rule.rows, twin.rule.coefficients, strict=True))
    found, expected = merged(world, plan), ensembled(world, plan, rows)
    same = found.keys() == expected.keys() and all(
        torch.allclose(found[name], expected[name], atol=1e-5) for name in expected
    )
    assert same is exact
