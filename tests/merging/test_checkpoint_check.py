"""Whether a checkpoint is a fine-tune of the base."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.base import Base, Linear
from merging.checkpoint_check import check_base, check_checkpoint
from merging.checkpoint_fit import under_model_names
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import SourceError

SHAPES = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.0.mlp.up_proj.weight": (4, 4),
    "model.layers.1.mlp.up_proj.weight": (4, 4),
    "model.norm.weight": (4,),
}
HEAD = "lm_head.weight"
CONFIG = {"model_type": "llama", "rope_theta": 10000.0, "torch_dtype": "float32"}


def write(folder: Path, tensors: dict[str, torch.Tensor | None], **config: object) -> Path:
    """A checkpoint of the base's shapes with these tensors in place of its own; None: left out."""
    own = {name: torch.ones(shape) for name, shape in SHAPES.items()} | tensors
    folder.mkdir()
    kept = {name: tensor for name, tensor in own.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def base_of(*, tied: bool) -> Base:
    linears = {f"model.layers.{i}.mlp.up_proj": Linear(4, 4) for i in range(2)}
    linears["lm_head"] = Linear(6, 4)
    return Base(
        "tiny",
        "sha256:0",
        "float32",
        2,
        linears,
        ties={HEAD: "model.embed_tokens.weight"} if tied else {},
    )


def check(
    tmp_path: Path,
    tensors: dict[str, torch.Tensor | None],
    *,
    tied: bool = True,
    **config: object,
) -> list[str]:
    """The warnings for a checkpoint with these tensors."""
    head = {} if tied else {HEAD: torch.zeros(6, 4)}
    base = base_of(tied=tied)
    resident, checkpoint = (
        under_model_names(open_checkpoint(folder), base)
        for folder in (
            write(tmp_path / "base", head),
            write(tmp_path / "ft", tensors, **config),
        )
    )
    return check_checkpoint(checkpoint, base, resident)


def refusal(tmp_path: Path, tensors: dict[str, torch.Tensor | None], **options) -> tuple[str, ...]:
    with pytest.raises(SourceError) as caught:
        check(tmp_path, tensors, **options)
    return caught.value.reasons


def test_a_fine_tune_fits(tmp_path):
    """The same tensors in the same shapes fit, in whatever float type each is."""
    changed = {"model.norm.weight": torch.zeros(4, dtype=torch.float16)}
    assert check(tmp_path, changed) == []


def test_missing_and_unexpected(tmp_path):
    """Tensors that are missing, or that the base has not, are named."""
    reasons = refusal(
        tmp_path, {"model.norm.weight": None, "model.layers.0.mlp.bias": torch.ones(4)}
    )
    assert reasons == (
        "it lacks 1 tensors of the base: model.norm.weight",
        "it has 1 tensors that the base has not: model.layers.0.mlp.bias",
    )


def test_shapes(tmp_path):
    """Tensors of another shape are named with both shapes, layers together."""
    wrong = {f"model.layers.{i}.mlp.up_proj.weight": torch.ones(5, 4) for i in range(2)}
    (reason,) = refusal(tmp_path, wrong)
    assert reason == (
        "model.layers.0.mlp.up_proj.weight, model.layers.1.mlp.up_proj.weight: "
        "it has shape [5, 4], the base has [4, 4]"
    )


def test_vocabularies(tmp_path):
    """An embedding with another number of rows is another vocabulary, and told as such."""
    (reason,) = refusal(tmp_path, {"model.embed_tokens.weight": torch.ones(8, 4)})
    assert "another vocabulary, 8 rows, and the base has 6" in reason


def test_a_head_on_a_tied_base(tmp_path):
    """A head of its own does not fit a base whose head is tied."""
    (reason,) = refusal(tmp_path, {HEAD: torch.zeros(6, 4)})
    assert "a head of its own, lm_head.weight" in reason


def test_a_tied_head_saved_twice(tmp_path):
    """A head that equals the embedding is tied, whatever was saved."""
    assert check(tmp_path, {HEAD: torch.ones(6, 4)}) == []


def test_a_tied_head_on_an_untied_base(tmp_path):
    """A tied head does not fit a base with a head of its own."""
    (reason,) = refusal(tmp_path, {}, tied=False)
    assert "tied to its embedding, and the base's is not" in reason


def test_an_untied_head_on_an_untied_base(tmp_path):
    """Two heads of their own fit."""
    assert check(tmp_path, {HEAD: torch.ones(6, 4)}, tied=False) == []


def test_quantised_weights(tmp_path):
    """Integers where the base has floats are no weights to merge."""
    packed = torch.ones(4, 4, dtype=torch.int8)
    (reason,) = refusal(tmp_path, {"model.layers.1.mlp.up_proj.weight": packed})
    assert "is I8, which is not merged" in reason


def test_quantised_floats(tmp_path):
    """Floats that mean nothing without their scales are refused, whatever the base has there."""
    packed = {
        name: torch.ones(4, 4).to(torch.float8_e4m3fn)
        for name in ("model.layers.1.mlp.up_proj.weight", "model.more")
    }
    for number, own in enumerate(({}, packed)):
        (tmp_path / str(number)).mkdir()
        resident = open_checkpoint(write(tmp_path / str(number) / "base", own))
        checkpoint = open_checkpoint(write(tmp_path / str(number) / "ft", packed))
        with pytest.raises(SourceError) as caught:
            check_checkpoint(checkpoint, base_of(tied=True), resident)
        (reason,) = caught.value.reasons
        assert reason == (
            "model.layers.1.mlp.up_proj.weight, model.more: is F8_E4M3, which is not merged: "
            "dequantise it first"
        )


def test_a_quantised_base(tmp_path):
    """It is refused by its tensors' types and by its config, before it is hashed."""
    packed = torch.ones(4, 4).to(torch.float8_e5m2)
    quantisation = {"quant_method": "fp8"}
    folder = write(
        tmp_path / "base",
        {"model.layers.0.mlp.up_proj.weight": packed},
        quantization_config=quantisation,
    )
    with pytest.raises(SourceError) as caught:
        check_base(folder)
    types, config = caught.value.reasons
    assert "model.layers.0.mlp.up_proj.weight" in types
    assert "F8_E5M2" in types
    assert "quantization_config of fp8" in config
    assert all("dequantise it first" in reason for reason in (types, config))
    check_base(write(tmp_path / "plain", {"model.position_ids": torch.arange(4)}))


def test_integer_buffers(tmp_path):
    """Buffers that the base has not are left out with a warning; derived ones without."""
    (warning,) = check(
        tmp_path,
        {
            "model.position_ids": torch.arange(4),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        },
    )
    assert warning == "model.position_ids are no weights, and are left out"


def test_another_architecture(tmp_path):
    """Another model_type is another architecture, though the shapes are the same."""
    (reason,) = refusal(tmp_path, {}, model_type="qwen2")
    assert reason == "its architecture is 'qwen2', and the base's is 'llama'"


def test_a_config_that_computes_something_else(tmp_path):
    """It is refused with both values, though all shapes are the same; what the shapes tell already
    or what changes nothing is not mentioned.
    """
    (reason,) = refusal(tmp_path, {}, rope_theta=5e5, torch_dtype="bfloat16")
    assert "its config.json has rope_theta 500000.0 (the base's 10000.0): " in reason
    assert "take a fine-tune of this base, or correct that config.json" in reason


def test_a_config_that_computes_nearly_the_same(tmp_path):
    """It is a warning: the model runs as the base does."""
    resident = open_checkpoint(write(tmp_path / "base", {}, rms_norm_eps=1e-6))
    tuned = open_checkpoint(write(tmp_path / "ft", {}, rms_norm_eps=1e-5))
    (warning,) = check_checkpoint(tuned, base_of(tied=True), resident)
    assert warning == "its config has rms_norm_eps 1e-05; it runs with the base's 1e-06"


def test_configs_that_cannot_be_read(tmp_path):
    """Without a config that can be read the tensors alone decide."""
    resident = open_checkpoint(write(tmp_path / "base", {}))
    folder = write(tmp_path / "ft", {})
    for content in ("{", "[]", None):
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_text(content)
        assert check_checkpoint(opened(folder), base_of(tied=True), resident) == []
        (folder / "config.json").touch()


def opened(folder: Path) -> CheckpointWeights:
    return open_checkpoint(folder)


def test_everything_at_once(tmp_path):
    """Every reason is listed, not only the first."""
    reasons = refusal(
        tmp_path,
        {
            "model.embed_tokens.weight": torch.ones(8, 4),
            "model.norm.weight": None,
            "extra.weight": torch.ones(1),
        },
        model_type="gpt2",
    )
    assert len(reasons) == 4
