"""Building one variant."""

from pathlib import Path

import pytest
import torch

from merging.checkpoint_weights import open_checkpoint
from merging.plan import Plan
from merging.recipe import Recipe
from merging.trim_cache import TrimCache
from server.engine.errors import VariantError
from server.errors import UnavailableError
from server.presets.planner import Planner
from server.presets.shelf import Need
from server.presets.workshop import BuildError, Workshop
from tests.server.presets.forge import Forge, write_checkpoint
from tests.server.presets.tiny import tiny_base

STACK = [{"sources": [{"model": "base", "layer_range": [low, low + 1]}]} for low in (0, 0, 1)]


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge(open_checkpoint(write_checkpoint(tmp_path / "tiny", 1000)))
    forge.gate.set()
    return forge


def plan_of(forge: Forge, **recipe: object) -> Plan:
    return Planner(tiny_base(), forge.resident).plan(Recipe.model_validate(recipe), {})


def scaled(forge: Forge) -> Plan:
    """Twice the base: every tensor is new."""
    return plan_of(forge, method="passthrough", sources={"base": {"scale": 2.0}})


def never() -> bool:
    return False


def test_weights_and_figures(forge):
    """The weights are the recipe's, and every phase has its seconds."""
    plan = scaled(forge)
    asked: list[Need] = []
    built = Workshop(forge, TrimCache(1000)).build(plan.variant, asked.append, never)
    for name, tensor in built.variant.tensors.items():
        torch.testing.assert_close(tensor, 2 * forge.resident.tensor(name))
    assert asked == [Need(built.num_bytes)]
    assert (built.digest, built.method) == (plan.digest, "passthrough")
    assert {"allocate", "merge", "finish"} <= built.seconds_by_phase.keys()


def test_siblings_get_the_bases_values(forge, monkeypatch):
    """A tensor that must be written beside a merged one gets the values that the base has."""
    start, extra = forge.start, "model.layers.0.mlp.up_proj.weight"
    recipe = [{"filter": "norm", "value": 2.0}, {"value": 1.0}]
    plan = plan_of(forge, method="passthrough", sources={"base": {"scale": recipe}})
    assert extra not in {tensor.name for tensor in plan.variant.tensors}
    monkeypatch.setattr(forge, "start", lambda d, layers, names: start(d, layers, {*names, extra}))
    built = Workshop(forge, TrimCache(0)).build(plan.variant, lambda n: None, never)
    assert torch.equal(built.variant.tensors[extra], forge.resident.tensor(extra))


def test_room_can_be_refused(forge):
    """Whoever asked may refuse the bytes once they are known."""

    def refuse(need: Need) -> None:
        raise BuildError([f"{need.num_bytes} bytes are too many"])

    with pytest.raises(BuildError, match="too many"):
        Workshop(forge, TrimCache(0)).build(scaled(forge).variant, refuse, never)
    assert forge.num_builds == 0


def test_cancelling(forge):
    """A build that nobody wants any more ends, and is no refusal."""
    with pytest.raises(UnavailableError):
        Workshop(forge, TrimCache(0)).build(scaled(forge).variant, lambda n: None, lambda: True)


def test_new_stacks_are_tried(forge):
    """The first variant of each stack of layers is tried before it is given out; one that cannot be
    run is refused. The base's own layers are known to run.
    """
    tried = []

    def check(variant) -> None:
        tried.append(variant.digest)
        if len(tried) == 1:
            raise VariantError("it cannot be run")

    workshop = Workshop(forge, TrimCache(0), check, num_layers=2)
    workshop.build(scaled(forge).variant, lambda n: None, never)
    assert tried == []
    stack = plan_of(forge, method="passthrough", sources={"base": {}}, slices=STACK)
    with pytest.raises(BuildError, match="it cannot be run"):
        workshop.build(stack.variant, lambda n: None, never)
    for _ in range(2):
        workshop.build(stack.variant, lambda n: None, never)
    assert tried == [stack.digest] * 2
