"""A plan as a checkpoint: what is written, what is copied, and in which dtype."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from merging.adapter import read_adapter
from merging.checkpoint import tensor_entries
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import OutputError, SourceError
from merging.merged_checkpoint import checkpoint_layout, write_checkpoint
from merging.models import Models
from merging.plan import Plan, base_plan, plan
from merging.recipe import Recipe
from tests.merging.tiny import base_of, save_peft, tiny_llama

TOKENS = torch.tensor([[1, 5, 9, 3]])


def planned(
    folder: Path, tied: bool = False, dtype: str = "float32"
) -> tuple[Plan, CheckpointWeights]:
    """A blend of one adapter on q_proj, and the base's files in `folder`/base."""
    tiny_llama(tied=tied).save_pretrained(folder / "base")
    save_peft(tiny_llama(tied=tied), folder / "adapter", target_modules=["q_proj"])
    weights = open_checkpoint(folder / "base")
    base = replace(base_of(tiny_llama(tied=tied)), dtype=dtype)
    recipe = Recipe(method="task_arithmetic", sources={"a": {"weight": 0.5}})
    adapter = read_adapter(folder / "adapter")
    return plan(recipe, {"a": adapter}, base, weights=weights), weights


def test_what_is_made_and_what_is_shared(tmp_path: Path) -> None:
    """Only what the adapter changes is made; a tied head is neither."""
    merge, weights = planned(tmp_path, tied=True)
    layout = checkpoint_layout(merge, Models(merge.base, weights, merge.sources))
    assert {spec.name for spec in layout.made} == {
        f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)
    }
    assert layout.is_tied
    assert "lm_head.weight" not in layout.shared
    assert len(layout.made) + len(layout.shared) == len(weights.shapes)


def test_shards_are_what_one_file_is(tmp_path: Path) -> None:
    """transformers loads them, and every tensor is the same; progress ends at all bytes."""
    merge, weights = planned(tmp_path)
    done: list[tuple[int, int]] = []
    for name, size in (("one", 10**9), ("many", 4000)):
        (tmp_path / name).mkdir()
        write_checkpoint(
            merge,
            weights,
            tmp_path / "base",
            tmp_path / name,
            card="# Card\n",
            max_shard_bytes=size,
            progress=lambda *now: done.append(now),
        )
    assert done[-1][0] == done[-1][1] == sum(e.num_bytes for e in weights.entries.values())
    assert (tmp_path / "one" / "README.md").read_text() == "# Card\n"
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert tensor_entries(tmp_path / "many").keys() == tensor_entries(tmp_path / "one").keys()
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("one", "many"))
    with torch.inference_mode():
        assert torch.equal(one(TOKENS).logits, many(TOKENS).logits)


def test_integers_and_other_dtypes(tmp_path: Path) -> None:
    """Weights take the dtype of the result; what is no float stays as it is."""
    merge, _ = planned(tmp_path, dtype="bfloat16")
    state = load_file(tmp_path / "base" / "model.safetensors")
    state["model.counts"] = torch.arange(3)
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    weights = open_checkpoint(tmp_path / "base")
    write_checkpoint(merge, weights, tmp_path / "base", tmp_path / "out", card="")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["model.counts"], torch.arange(3))
    assert {t.dtype for name, t in found.items() if name != "model.counts"} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_integers_of_a_merge_of_checkpoints(tmp_path: Path) -> None:
    """Buffers of whole numbers are no weights: they stay the base's own, in their own type."""
    counts = torch.tensor([3, 2**24 + 1])
    for name in ("base", "ft"):
        tiny_llama().save_pretrained(tmp_path / name)
        state = load_file(tmp_path / name / "model.safetensors") | {"model.counts": counts}
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    weights, tuned = (open_checkpoint(tmp_path / name) for name in ("base", "ft"))
    base = replace(base_of(tiny_llama()), dtype="bfloat16")
    recipe = Recipe(method="linear", sources={"ft": {"weight": 0.3}, "base": {"weight": 0.7}})
    merge = plan(recipe, {"ft": tuned}, base, weights=weights)
    (tmp_path / "out").mkdir()
    write_checkpoint(merge, weights, tmp_path / "base", tmp_path / "out", card="")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["model.counts"].dtype == torch.int64
    assert torch.equal(found["model.counts"], counts)
    assert found["model.norm.weight"].dtype == torch.bfloat16


def test_a_base_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    """Infinities are not written, by the name of the tensor."""
    planned(tmp_path)
    state = load_file(tmp_path / "base" / "model.safetensors")
    state["model.norm.weight"][1] = 1e6
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    weights = open_checkpoint(tmp_path / "base")
    (tmp_path / "out").mkdir()
    base = replace(base_of(tiny_llama()), dtype="float16")
    with pytest.raises(OutputError, match=r"model\.norm\.weight.*float16"):
        write_checkpoint(base_plan(base), weights, tmp_path / "base", tmp_path / "out", card="")


@pytest.mark.parametrize("changed", ["base", "ft"])
def test_a_file_that_changes_while_it_is_merged(tmp_path: Path, changed: str) -> None:
    """Whatever was read by then may be of either content: it is refused by the file's name."""
    for name in ("base", "ft"):
        tiny_llama().save_pretrained(tmp_path / name)
    weights, tuned = (open_checkpoint(tmp_path / name) for name in ("base", "ft"))
    base = base_of(tiny_llama())
    recipe = Recipe(method="linear", sources={"ft": {"weight": 0.3}, "base": {"weight": 0.7}})
    merge = plan(recipe, {"ft": tuned}, base, weights=weights)
    (tmp_path / "out").mkdir()
    path = tmp_path / changed / "model.safetensors"

    def progress(done: int, total: int) -> None:
        if done == total:  # all is read and written
            os.utime(path, ns=(1, 1))

    with pytest.raises(SourceError, match=f"{changed}/model.safetensors changed since"):
        write_checkpoint(
            merge, weights, tmp_path / "base", tmp_path / "out", card="", progress=progress
        )


@pytest.mark.parametrize("content", [None, "[", "[]", "{}"])
def test_a_base_without_a_config_is_refused(tmp_path: Path, content: str | None) -> None:
    """Nothing could load the result."""
    merge, weights = planned(tmp_path)
    (tmp_path / "base" / "config.json").unlink()
    if content is not None:
        (tmp_path / "base" / "config.json").write_text(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match=r"config\.json"):
        write_checkpoint(merge, weights, tmp_path / "base", tmp_path / "out", card="")
