"""PEFT as the oracle: adapters that it made are read exactly, or refused by the feature's name."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file

from merging.adapter import Adapter, check_adapter, read_adapter
from merging.errors import DenseDeltaError, SourceError
from tests.merging.tiny import base_of, save_peft, tiny_gpt2, tiny_llama

ATTENTION = ["q_proj", "v_proj"]
LINEARS = [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def deltas(peft_model: PeftModel) -> dict[str, torch.Tensor]:
    """PEFT's own dense deltas by module path, [out, in] for every kind of layer."""
    found = {}
    for name, module in peft_model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight("default")
            found[name] = delta.T if module.fan_in_fan_out else delta
    return found


def write_into(model: Any, adapter: Adapter) -> Any:
    """A copy of a model with the adapter's deltas in its weights; a tied head is untied."""
    merged = copy.deepcopy(model)
    head = merged.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for name, factor in adapter.factors.items():
        module = merged.get_submodule(name)
        delta = factor.scale * factor.b @ factor.a
        transposed = not isinstance(module, torch.nn.Linear)
        module.weight.data += delta.T if transposed else delta
    return merged


LLAMA_CASES: Mapping[str, dict[str, Any]] = {
    "plain": {"target_modules": ATTENTION},
    "every linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.1\..*(up|down)_proj"},
    "rslora": {"target_modules": LINEARS, "use_rslora": True},
    "rank pattern": {
        "target_modules": LINEARS,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6, r"layers\.0\.self_attn\.v.*": 1},
    },
    "alpha pattern": {
        "target_modules": LINEARS,
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "down_proj": 1},
    },
    "both patterns and rslora": {
        "target_modules": LINEARS,
        "use_rslora": True,
        "rank_pattern": {"model.layers.1.self_attn.q_proj": 5, "q_proj": 2},
        "alpha_pattern": {"q_proj": 7, "mlp.up_proj": 2},
    },
    "one layer": {"target_modules": ATTENTION, "layers_to_transform": [1]},
    "one layer by number": {"target_modules": ATTENTION, "layers_to_transform": 0},
    "excluded modules": {"target_modules": LINEARS, "exclude_modules": ["o_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "gaussian": {"target_modules": ATTENTION, "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"},
    "mica": {"target_modules": ATTENTION, "init_lora_weights": "mica"},
    "fan_in_fan_out on a Linear": {"target_modules": ATTENTION, "fan_in_fan_out": True},
    "dropout": {"target_modules": ATTENTION, "lora_dropout": 0.5},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", LLAMA_CASES)
def test_deltas_and_logits_equal_those_of_peft(tmp_path: Path, case: str, tied: bool) -> None:
    """Module for module `scale * b @ a` is PEFT's delta, and written into the weights it gives the
    logits of PEFT's own unmerged forward.
    """
    model = tiny_llama(tied=tied)
    base, plain = base_of(model), copy.deepcopy(model)
    peft_model = save_peft(model, tmp_path, **LLAMA_CASES[case])
    adapter = read_adapter(tmp_path)
    check_adapter(adapter, base, base_tensor=plain.state_dict().get)
    expected = deltas(peft_model)
    assert adapter.factors.keys() == expected.keys()
    for name, factor in adapter.factors.items():
        torch.testing.assert_close(factor.scale * factor.b @ factor.a, expected[name])
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        logits = write_into(plain, adapter)(tokens).logits
        torch.testing.assert_close(logits, peft_model(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"fan_in_fan_out": True}, {"use_rslora": True}])
def test_transposed_layers_have_factors_as_others(tmp_path: Path, fields: dict[str, Any]) -> None:
    """For GPT-2's Conv1D PEFT too saves A as [r, in] and B as [out, r]."""
    model = tiny_gpt2()
    base, plain = base_of(model), copy.deepcopy(model)
    peft_model = save_peft(model, tmp_path, target_modules=["c_attn", "c_proj", "c_fc"], **fields)
    adapter = read_adapter(tmp_path)
    assert check_adapter(adapter, base) == []
    expected = deltas(peft_model)
    assert adapter.factors.keys() == expected.keys()
    for name, factor in adapter.factors.items():
        torch.testing.assert_close(factor.scale * factor.b @ factor.a, expected[name])
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        logits = write_into(plain, adapter)(tokens).logits
        torch.testing.assert_close(logits, peft_model(tokens).logits, rtol=1e-4, atol=1e-5)


def test_patterns_that_peft_reorders_are_refused_as_peft_refuses_them(tmp_path: Path) -> None:
    """PEFT sorts patterns as it saves them, and cannot load what then disagrees; nor do we."""
    patterns = {"q_proj": 2, "model.layers.1.self_attn.q_proj": 5}
    save_peft(tiny_llama(), tmp_path, target_modules=ATTENTION, rank_pattern=patterns)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    with pytest.raises(SourceError, match="of rank 2, and the config gives it rank 5"):
        read_adapter(tmp_path)


def test_an_adapter_on_the_head_brings_a_copy_of_it(tmp_path: Path) -> None:
    """PEFT saves the base's head beside such an adapter; it is taken only if it is the base's."""
    model = tiny_llama()
    base, plain = base_of(model), copy.deepcopy(model)
    save_peft(model, tmp_path, target_modules=["lm_head"])
    adapter = read_adapter(tmp_path)
    assert list(adapter.base_copies) == ["lm_head.weight"]
    assert check_adapter(adapter, base, base_tensor=plain.state_dict().get) == []
    plain.lm_head.weight.data[0, 0] += 1
    with pytest.raises(SourceError, match=r"lm_head\.weight with other values"):
        check_adapter(adapter, base, base_tensor=plain.state_dict().get)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    """An adapter for GPT-2 does not fit a Llama, and its modules are named."""
    save_peft(tiny_gpt2(), tmp_path, target_modules=["c_attn"])
    with pytest.raises(SourceError, match=r"transformer\.h\.0\.attn\.c_attn"):
        check_adapter(read_adapter(tmp_path), base_of(tiny_llama()))


def test_bf16_adapters_are_read_as_they_are(tmp_path: Path) -> None:
    """Factors cast to bf16 give the delta of those bf16 factors."""
    peft_model = save_peft(tiny_llama(), tmp_path, target_modules=ATTENTION)
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path)
    adapter = read_adapter(tmp_path)
    for name, delta in deltas(peft_model).items():
        factor = adapter.factors[name]
        assert factor.a.dtype == torch.bfloat16
        dense = factor.scale * factor.b.float() @ factor.a.float()
        torch.testing.assert_close(dense, delta, rtol=2e-2, atol=2e-3)


def test_a_converted_pissa_adapter_is_exact(tmp_path: Path) -> None:
    """The way out that a refusal names works: PEFT's conversion gives an adapter of the base."""
    model = tiny_llama()
    plain = copy.deepcopy(model)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=ATTENTION, init_lora_weights="pissa"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, config)
        initial, trained = tmp_path / "initial", tmp_path / "trained"
        peft_model.peft_config["default"].init_lora_weights = True
        peft_model.save_pretrained(initial)
        peft_model.peft_config["default"].init_lora_weights = "pissa"
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.05 * torch.randn_like(parameter)
        peft_model.save_pretrained(trained, path_initial_model_for_weight_conversion=str(initial))
    adapter = read_adapter(trained)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        logits = write_into(plain, adapter)(tokens).logits
        torch.testing.assert_close(logits, peft_model.eval()(tokens).logits, rtol=1e-3, atol=1e-4)


DENSE: Mapping[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"target_modules": ["c_attn"], "lora_bias": True},
    "bias='all'": {"target_modules": ["c_attn"], "bias": "all"},
    "bias='lora_only'": {"target_modules": ["c_attn"], "bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "lora_embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "target_parameters": {"target_parameters": ["mlp.up_proj.weight"]},
    "kasa_config": {"kasa_config": KasaConfig()},
    "velora_config": {"velora_config": VeloraConfig(num_groups=4)},
    "monteclora_config": {"monteclora_config": MontecloraConfig()},
    "init_lora_weights 'pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights 'olora'": {"init_lora_weights": "olora"},
    "ensure_weight_tying": {"target_modules": ["lm_head"], "ensure_weight_tying": True},
}
REFUSED: Mapping[str, dict[str, Any]] = {
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "init_lora_weights 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
}


@pytest.mark.parametrize("feature", [*DENSE, *REFUSED])
def test_what_is_no_low_rank_delta_is_told_by_name(tmp_path: Path, feature: str) -> None:
    """What PEFT can merge makes the delta dense; the rest is refused with a way out; both by the
    feature's name.
    """
    fields = {"target_modules": ATTENTION, **{**DENSE, **REFUSED}[feature]}
    model = (
        tiny_gpt2()
        if fields["target_modules"] == ["c_attn"]
        else tiny_llama(tied="tying" in feature)
    )
    save_peft(model, tmp_path, **fields)
    name = feature.partition(" ")[0].partition("=")[0]
    with pytest.raises(SourceError) as error:
        read_adapter(tmp_path)
    assert isinstance(error.value, DenseDeltaError) == (feature in DENSE)
    reasons = [reason for reason in error.value.reasons if reason.startswith(name)]
    assert len(reasons) == 1, error.value.reasons
    if feature in REFUSED:
        assert "not supported" in reasons[0]
        assert ";" in reasons[0]


def test_saved_embeddings_are_refused_if_they_were_resized(tmp_path: Path) -> None:
    """An adapter trained with a larger vocabulary is refused by the tensor and the base's shape."""
    model = tiny_llama()
    base, plain = base_of(model), copy.deepcopy(model)
    model.resize_token_embeddings(44, mean_resizing=False)
    peft_model = save_peft(model, tmp_path, target_modules=ATTENTION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model.save_pretrained(tmp_path, save_embedding_layers=True)
    adapter = read_adapter(tmp_path)
    with pytest.raises(
        SourceError, match=r"embed_tokens\.weight with other values or another shape"
    ):
        check_adapter(adapter, base, base_tensor=plain.state_dict().get)
