"""What is found out about a model when it is loaded, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.engine.engine import Engine
from server.engine.errors import ModelLoadError, UnsupportedModelError
from server.engine.loading import load_engine
from server.engine.options import EngineOptions
from server.engine.probe import choose_attention, prompt_for
from tests.families import save_family
from tests.models import save_tiny_model
from tests.server.engine.conftest import Bench

NOISY = 1.0
"""Weights under which the logits of the two half-precision forwards differ by far more than 5 %."""


def load(folder: Path, dtype: str = "float32") -> Engine:
    options = EngineOptions(kv_memory=0.004, block_size=4, dtype=dtype, device="cpu")  # type: ignore[arg-type]
    return load_engine(folder, options).engine


def drop(folder: Path, name: str) -> None:
    """Take a tensor out of a model's file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})


def test_rounding_that_the_weights_amplify_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Llama whose weights amplify the rounding of bfloat16 is served with our attention, although
    no fixed limit says so.
    """
    monkeypatch.setattr("server.engine.trial.MAX_ERROR_HALF", 0.0)
    engine = load(save_family(tmp_path / "noisy", "llama", std=NOISY), "bfloat16")
    assert engine._runner.is_packed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_does_not_hide_a_wrong_mask(tmp_path: Path, dtype: str) -> None:
    """Nor does it excuse our attention where a window is in masks alone, with the same weights."""
    engine = load(save_family(tmp_path / "noisy", "phimoe", std=NOISY), dtype)
    assert not engine._runner.is_packed


def test_logits_that_differ_are_refused(bench: Bench) -> None:
    """A model that gives other logits than transformers' under both attentions is not served."""
    model = bench.engine._runner._model
    token_ids = prompt_for(model.model)
    wrong = torch.randn(len(token_ids), 259)
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM cannot be served"):
        choose_attention(model, token_ids, wrong)
    model.use_attention(is_packed=True)


@pytest.mark.parametrize(("family", "is_packed"), [("mistral", True), ("phimoe", False)])
def test_wide_windows_are_tried(family: str, is_packed: bool, tmp_path: Path) -> None:
    """A window far longer than the test prompt is noticed where our attention is not told of it,
    and the config has it again afterwards.
    """
    folder = save_family(tmp_path / family, family)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"sliding_window": 7', '"sliding_window": 200'))
    engine = load(folder)
    assert engine._runner.is_packed == is_packed
    assert engine._runner._model.model.config.sliding_window == 200


def test_a_tensor_that_is_not_in_the_files_is_named(tmp_path: Path) -> None:
    """What transformers would fill with random values is an error by name."""
    folder = save_tiny_model(tmp_path / "tiny")
    drop(folder, "model.layers.1.self_attn.k_proj.weight")
    with pytest.raises(ModelLoadError, match=r"model.layers.1.self_attn.k_proj.weight are not in"):
        load(folder)


def test_a_tensor_that_a_family_lets_be_missing_is_named(tmp_path: Path) -> None:
    """Transformers does not report these as missing, and fills them all the same."""
    folder = save_family(tmp_path / "axk1", "axk1")
    names = [name for name in load_file(folder / "model.safetensors") if "e_score" in name]
    drop(folder, names[0])
    with pytest.raises(ModelLoadError, match="e_score_correction_bias"):
        load(folder)


def test_a_tied_head_need_not_be_in_the_files(tmp_path: Path) -> None:
    """A head that is the embedding comes from a file with it."""
    folder = save_tiny_model(tmp_path / "tiny")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load(folder)
