"""`mergeserve inspect` says what a folder is, and what would be done with it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from server.inspection import inspect_folder
from tests.merging.tiny import base_of, factors, flat_base, save_peft, tiny_llama, write_adapter

Q0, UP1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
BASE = flat_base()


def lines(report: str) -> dict[str, list[str]]:
    """The report's lines by their labels."""
    found: dict[str, list[str]] = {}
    for line in report.splitlines()[1:]:
        found.setdefault(line[2:13].strip(), []).append(line[13:].strip())
    return found


def test_an_adapter_is_described(tmp_path: Path) -> None:
    """Rank, alpha, scale by target and layer, size, digest and origin are all there."""
    tensors = {**factors(Q0), **factors(UP1, rank=3)}
    folder = write_adapter(
        tmp_path, tensors, rank_pattern={"up_proj": 3}, base_model_name_or_path="org/flat"
    )
    report = inspect_folder(folder, None)
    assert report.startswith(f"{folder}: an adapter (PEFT)\n")
    found = lines(report)
    assert found["rank"] == ["2, 3"]
    assert found["alpha"] == ["4"]
    assert found["scale"] == [
        "2 on layers 0-0: self_attn.q_proj",
        "1.33333 on layers 1-1: mlp.up_proj",
    ]
    assert found["size"] == ["160 bytes in float32, 2 modules"]
    assert found["digest"][0].startswith("sha256:")
    assert found["trained on"] == ["org/flat"]
    assert "--model" in found["base"][0]
    assert found["outcome"] == ["can be served as a blend, on a base that it fits"]


def test_an_adapter_that_fits_is_served(tmp_path: Path) -> None:
    """With a base the report says that it fits."""
    found = lines(inspect_folder(write_adapter(tmp_path, factors(Q0)), BASE))
    assert found["base"] == [f"flat, {BASE.digest}: it fits"]
    assert found["outcome"][0].startswith("served as a blend")
    assert "reason" not in found


def test_another_base_name_is_a_warning(tmp_path: Path) -> None:
    """The adapter is served, and the doubt is shown."""
    folder = write_adapter(tmp_path, factors(Q0), base_model_name_or_path="org/other")
    found = lines(inspect_folder(folder, replace(BASE, hub_id="org/flat")))
    assert "'org/other'" in found["warning"][0]
    assert found["outcome"][0].startswith("served as a blend")


def test_another_base_digest_is_refused_unless_allowed(tmp_path: Path) -> None:
    """The same option that the server has decides."""
    folder = write_adapter(tmp_path, factors(Q0), {"base_digest": "sha256:aa"})
    found = lines(inspect_folder(folder, BASE))
    assert found["outcome"] == ["refused"]
    assert "sha256:aa" in found["reason"][0]
    allowed = lines(inspect_folder(folder, BASE, allow_base_mismatch=True))
    assert allowed["outcome"][0].startswith("served as a blend")
    assert "sha256:aa" in allowed["warning"][0]


def test_an_adapter_that_does_not_fit_is_described_and_refused(tmp_path: Path) -> None:
    """Every reason is listed, below what the adapter is."""
    folder = write_adapter(tmp_path, {**factors(Q0, in_features=8), **factors("other")})
    found = lines(inspect_folder(folder, BASE))
    assert found["rank"] == ["2"]
    assert found["outcome"] == ["refused"]
    assert len(found["reason"]) == 2


def test_a_dense_adapter_shows_why(tmp_path: Path) -> None:
    """Without a base nothing is merged, and every reason is told."""
    found = lines(inspect_folder(write_adapter(tmp_path, factors(Q0), use_dora=True), None))
    assert found["delta"][0].startswith("dense: PEFT merges it")
    assert found["because"] == ["use_dora: DoRA rescales the base's weights row by row"]
    assert found["outcome"][0].startswith("can be served as a variant")


def test_a_refused_adapter_shows_every_reason(tmp_path: Path) -> None:
    """What its config says is still shown, and no reason is left out."""
    refused = {"arrow_config": {"a": 1}, "alora_invocation_tokens": [1]}
    folder = write_adapter(tmp_path, factors(Q0, rank=3), **refused)
    found = lines(inspect_folder(folder, None))
    assert (found["rank"], found["alpha"], found["trained on"]) == (["2"], ["4"], ["not recorded"])
    assert found["outcome"] == ["refused"]
    assert len(found["reason"]) == 3


def test_a_broken_config_is_reported(tmp_path: Path) -> None:
    """A report is made of any folder, whatever is in it."""
    (tmp_path / "adapter_config.json").write_text("{")
    found = lines(inspect_folder(tmp_path, None))
    assert found["outcome"] == ["refused"]
    assert "is not JSON" in found["reason"][0]
    assert "rank" not in found


def test_an_adapter_of_pickle_is_recognised(tmp_path: Path) -> None:
    """An old adapter is told how to be converted."""
    write_adapter(tmp_path, factors(Q0))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert "convert it to safetensors" in inspect_folder(tmp_path, None)


def test_weights_without_their_config_are_an_adapter_too(tmp_path: Path) -> None:
    """A forgotten adapter_config.json is named, not taken for a checkpoint."""
    write_adapter(tmp_path, factors(Q0))
    (tmp_path / "adapter_config.json").unlink()
    found = lines(inspect_folder(tmp_path, None))
    assert "adapter_config.json cannot be read" in found["reason"][0]


def test_a_wrong_rank_is_not_shown_as_one(tmp_path: Path) -> None:
    """A config whose rank cannot be read shows none."""
    folder = write_adapter(tmp_path, factors(Q0), r="two")
    found = lines(inspect_folder(folder, None))
    assert "rank" not in found
    assert "r must be a positive integer, got 'two'" in found["reason"]


def test_copies_of_the_base_are_compared_where_it_can_be_asked(tmp_path: Path) -> None:
    """An adapter on the head needs one tensor of the base, and no more."""
    model = tiny_llama()
    base, state = base_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    save_peft(model, tmp_path, target_modules=["lm_head"])
    asked: list[str] = []

    def base_tensor(name: str) -> torch.Tensor | None:
        asked.append(name)
        return state.get(name)

    found = lines(inspect_folder(tmp_path, base, base_tensor=base_tensor))
    assert found["outcome"][0].startswith("served as a blend")
    assert asked == ["lm_head.weight"]
    assert "not at hand" in inspect_folder(tmp_path, base)


@pytest.mark.parametrize("config", [True, False])
def test_a_checkpoint_is_recognised(tmp_path: Path, config: bool) -> None:
    """A full model is described from its files alone."""
    save_file({"w": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    report = inspect_folder(tmp_path, BASE)
    assert report.startswith(f"{tmp_path}: a full checkpoint\n")
    found = lines(report)
    assert (found["tensors"], found["size"]) == (["1 in BF16"], ["4 bytes"])
    assert found["digest"][0].startswith("sha256:")
    assert "--model" in found["base"][0]
    assert "can be a base" in found["outcome"][0]


def test_a_checkpoint_is_compared_with_the_base(tmp_path: Path) -> None:
    """What fits is served as a variant; what does not is refused with every reason."""
    model = tiny_llama()
    base = base_of(model)
    for name in ("base", "fine", "wrong"):
        model.save_pretrained(tmp_path / name)
    state = load_file(tmp_path / "wrong" / "model.safetensors")
    state["model.norm.weight"] = torch.zeros(3)
    del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, tmp_path / "wrong" / "model.safetensors")

    def resident() -> CheckpointWeights:
        return open_checkpoint(tmp_path / "base")

    found = lines(inspect_folder(tmp_path / "fine", base, resident=resident))
    assert found["base"] == ["tiny: it fits"]
    assert found["outcome"][0].startswith("served as a variant")
    found = lines(inspect_folder(tmp_path / "wrong", base, resident=resident))
    assert found["outcome"] == ["refused"]
    assert "model.norm.weight" in " ".join(found["reason"])
    assert "model.layers.0.mlp.up_proj.weight" in " ".join(found["reason"])


def test_a_checkpoint_of_pickle_is_refused(tmp_path: Path) -> None:
    """The way out is in the reason."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    found = lines(inspect_folder(tmp_path, None))
    assert found["outcome"] == ["refused"]
    assert "convert it to safetensors" in found["reason"][0]


def test_other_folders_are_neither(tmp_path: Path) -> None:
    """What lies in a folder that is neither is shown."""
    assert "nothing" in inspect_folder(tmp_path, None)
    (tmp_path / "notes.txt").write_text("")
    report = inspect_folder(tmp_path, None)
    assert "neither an adapter nor a checkpoint" in report
    assert "notes.txt" in report
