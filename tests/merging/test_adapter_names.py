"""Names of an adapter's tensors: what wrapped the model is taken off, and nothing is guessed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.adapter import read_adapter
from merging.adapter_names import peft_names
from merging.errors import SourceError
from tests.merging.tiny import PREFIX, factors, write_adapter

Q0 = "model.layers.0.self_attn.q_proj"
KEY = f"{PREFIX}{Q0}.lora_A.weight"


@pytest.mark.parametrize(
    "saved",
    [
        KEY,
        f"{Q0}.lora_A.weight",
        f"{PREFIX}{Q0}.lora_A.default.weight",
        f"{PREFIX}{Q0}.lora_A.sql.weight",
        f"{Q0}.lora_A.default.weight",
        f"module.{KEY}",
        f"_orig_mod.{KEY}",
        f"module._orig_mod.{KEY}",
        f"{PREFIX}_orig_mod.{Q0}.lora_A.weight",
        f"{PREFIX}module.{Q0}.lora_A.weight",
        f"{PREFIX}model.layers.0._orig_mod.self_attn.q_proj.lora_A.weight",
        f"_fsdp_wrapped_module.{PREFIX}model.layers.0._fsdp_wrapped_module.self_attn.q_proj"
        ".lora_A.weight",
    ],
)
def test_wrapped_names_are_those_that_peft_writes(saved: str) -> None:
    """However the tensor was called when it was saved, its name is PEFT's."""
    assert list(peft_names({saved: torch.zeros(1)})) == [KEY]


@pytest.mark.parametrize("wrap", ["{}", "module.{}", "_orig_mod.{}"])
@pytest.mark.parametrize("name", ["", ".default", ".sql"])
def test_an_adapter_is_the_same_under_any_of_its_names(
    tmp_path: Path, wrap: str, name: str
) -> None:
    """Its digest is that of the adapter as PEFT saves it."""
    plain = read_adapter(write_adapter(tmp_path / "plain", factors(Q0)))
    folder = write_adapter(tmp_path / "wrapped", {})
    tensors = {
        wrap.format(k.replace(".weight", f"{name}.weight")): t for k, t in factors(Q0).items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    assert read_adapter(folder).digest == plain.digest


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"{Q0}.lora_A.sql.weight", f"{Q0}.lora_A.chat.weight"], "several adapters, chat, sql"),
        ([KEY, f"module.{KEY}"], "under two names: save it with"),
    ],
)
def test_what_may_mean_several_things_is_refused(names: list[str], reason: str) -> None:
    """With what to save instead."""
    with pytest.raises(SourceError, match=reason):
        peft_names({name: torch.zeros(1) for name in names})


def test_names_that_are_wrapped_in_part_are_not_understood(tmp_path: Path) -> None:
    """Where some tensors have PEFT's prefix, one without it is none of PEFT's."""
    tensors = factors(Q0)
    folder = write_adapter(tmp_path, tensors)
    both = {f"{PREFIX}{name}": t for name, t in tensors.items()}
    save_file({**both, "extra": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="does not write: extra; save it with peft's"):
        read_adapter(folder)
