"""Dense deltas and parents without a server: inspect, its conversion to a LoRA, and merges."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from server.__main__ import main
from tests.adapters import save_adapter
from tests.models import tiny_model
from tests.server.adapters.asking import dense, low_rank
from tests.server.adapters.peft_folders import load

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, in this process


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_inspect_says_the_way_the_cost_and_the_way_out(tmp_path, here, tiny, capsys):
    """Without a base it says why the delta is dense; with one, it is merged, and the cost told."""
    folder = str(tmp_path / "dora")
    assert main(["inspect", folder]) == 0
    told = capsys.readouterr().out
    assert "dense: PEFT merges it" in told
    assert "use_dora: DoRA rescales" in told
    assert here == []
    assert main(["inspect", folder, "--model", str(tiny)]) == 0
    told = capsys.readouterr().out
    assert "it fits" in told
    assert "36864 bytes on disk, 9 tensors" in told
    assert "--to-lora RANK" in told
    assert main(["inspect", str(tmp_path / "math"), "--model", str(tiny)]) == 0
    assert "low-rank: its factors blend" in capsys.readouterr().out


def test_a_conversion_keeps_the_share_that_it_says(tmp_path, here, tiny, capsys):
    """What is written is the best LoRA of the rank, and of full rank it is the delta itself."""
    plain = dict(load(tiny).named_parameters())
    whole = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    with torch.no_grad():
        dense(tiny, tmp_path / "dora", 1.0)(whole)
    total = sum(float(delta.double().square().sum()) for delta in whole.values())
    for rank in (4, 32):
        out = tmp_path / f"lora{rank}"
        options = ["--model", str(tiny), "--to-lora", str(rank), "--out", str(out)]
        assert main(["inspect", str(tmp_path / "dora"), *options]) == 0
        share = float(capsys.readouterr().out.split(" keeps ")[1].split("%")[0]) / 100
        rest = {name: delta.clone() for name, delta in whole.items()}
        with torch.no_grad():
            low_rank(out, -1.0)(rest)
        lost = sum(float(delta.double().square().sum()) for delta in rest.values()) / total
        assert share == pytest.approx(1 - lost, abs=1e-3)
    assert share == 1.0


@pytest.mark.parametrize("options", [["--to-lora", "4"], ["--out", "x"]])
def test_a_conversion_needs_rank_and_folder(tmp_path, tiny, options, capsys):
    """One without the other is an error that names both."""
    assert main(["inspect", str(tmp_path / "dora"), "--model", str(tiny), *options]) == 1
    assert "--to-lora RANK and --out DIR" in capsys.readouterr().err


def test_a_merge_of_an_adapter_on_a_dense_one(tmp_path, here, tiny):
    """--source NAME=DIR,parent=NAME: the delta of the child includes that of its parent."""
    save_adapter(tmp_path / "child", tiny_model("llama-untied"), seed=9, std=0.1)
    recipe = {"method": "task_arithmetic", "sources": {"child": {"weight": 0.5}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    sources = [f"child={tmp_path / 'child'},parent=dora", f"dora={tmp_path / 'dora'}"]
    options = [word for source in sources for word in ("--source", source)]
    command = ["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), "--model", str(tiny)]
    assert main([*command, *options]) == 0
    expected = {name: t.detach().clone() for name, t in load(tiny).named_parameters()}
    with torch.no_grad():
        dense(tiny, tmp_path / "dora", 0.5)(expected)
        low_rank(tmp_path / "child", 0.5)(expected)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_a_parent_that_is_not_given(tmp_path, tiny, capsys):
    """It is named."""
    recipe = {"method": "task_arithmetic", "sources": {"math": {"weight": 0.5}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), "--model", str(tiny)]
    assert main([*command, "--source", f"math={tmp_path / 'math'},parent=nobody"]) == 1
    assert "nobody is not given" in capsys.readouterr().err
