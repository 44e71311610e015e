"""The diagnosis of a plan sees the deltas that the merge is made of."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merging.adapter import read_adapter
from merging.checkpoint_weights import open_checkpoint
from merging.models import Source
from merging.plan import plan
from merging.plan_diagnosis import diagnose_plan
from merging.recipe import Recipe
from tests.merging.tiny import base_of, save_peft, tiny_llama


def write_models(folder: Path) -> None:
    """A base, an adapter and a fine-tune."""
    model = tiny_llama()
    model.save_pretrained(folder / "base")
    save_peft(model, folder / "adapter", target_modules=["q_proj", "up_proj"])
    tuned = tiny_llama()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(folder / "tuned")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("task_arithmetic", {}), ("core_space", {"inside": "task_arithmetic"})],
)
def test_a_blend(tmp_path: Path, method: str, parameters: dict[str, str]) -> None:
    """Figures of the low-rank deltas, and shares that add up to 1 in every group; of the sources
    themselves too where one adapter is made of them.
    """
    write_models(tmp_path)
    base, weights = base_of(tiny_llama()), open_checkpoint(tmp_path / "base")
    adapter = read_adapter(tmp_path / "adapter")
    recipe = Recipe(
        method=method,
        sources={"a": {"weight": [0.5, 2.0]}, "b": {"weight": 1.0}},
        parameters=parameters,
    )
    done: list[tuple[int, int]] = []
    report = diagnose_plan(
        plan(recipe, {"a": adapter, "b": adapter}, base, weights=weights),
        weights,
        progress=lambda *now: done.append(now),
    )
    assert [(g.layer, g.kind) for g in report.groups] == [
        (layer, kind) for layer in (0, 1) for kind in ("self_attn.q_proj", "mlp.up_proj")
    ]
    assert done[-1] == (2 * (16 * 16 + 24 * 16),) * 2
    state = load_file(tmp_path / "base" / "model.safetensors")
    group = report.groups[2]
    factor = adapter.factors["model.layers.1.self_attn.q_proj"]
    delta = factor.scale * factor.b @ factor.a
    expected = 3.0 * delta.norm() / state["model.layers.1.self_attn.q_proj.weight"].norm()
    assert group.relative_change == pytest.approx(float(expected), rel=1e-5)
    assert [p.cosine for p in group.pairs] == [pytest.approx(1.0)]
    assert [p.sign_conflict for p in group.pairs] == [0.0]
    for figures in (*report.groups, report.total):
        assert sum(s.contribution or 0.0 for s in figures.sources) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear"])
def test_a_variant(tmp_path: Path, method: str) -> None:
    """Deltas of checkpoints and adapters alike, in every tensor that is written, relative to the
    resident base also where the method needs none.
    """
    write_models(tmp_path)
    base, weights = base_of(tiny_llama()), open_checkpoint(tmp_path / "base")
    sources: dict[str, Source] = {
        "tuned": open_checkpoint(tmp_path / "tuned"),
        "low": read_adapter(tmp_path / "adapter"),
    }
    settings = {"tuned": {"weight": 0.5}, "low": {"weight": 0.5}}
    recipe = Recipe(method=method, sources=settings, parameters={})
    report = diagnose_plan(plan(recipe, sources, base, weights=weights), weights, scratch=tmp_path)
    names = {(g.layer, g.kind) for g in report.groups}
    assert {(None, "model.norm"), (0, "mlp.down_proj"), (None, "lm_head")} <= names
    tuned, state = (load_file(tmp_path / name / "model.safetensors") for name in ("tuned", "base"))
    group = next(g for g in report.groups if (g.layer, g.kind) == (0, "mlp.down_proj"))
    name = "model.layers.0.mlp.down_proj.weight"
    low, full = group.sources
    ratio = (tuned[name] - state[name]).norm() / state[name].norm()
    assert full.relative_norm == pytest.approx(float(ratio), rel=1e-4)
    assert low.relative_norm in (0.0, None)
    shares = [s.contribution or 0.0 for s in report.total.sources]
    if method != "ties":
        assert sum(shares) == pytest.approx(1.0, abs=1e-4)
        assert group.relative_change == pytest.approx(float(ratio) / 2, rel=1e-4)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mergeserve")] == []
