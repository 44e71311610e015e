"""A blend exported as one adapter is the blend, in PEFT too."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merging.adapter import Adapter, LowRank, check_adapter, read_adapter
from merging.adapter_export import (
    caveats,
    cut_rank,
    pad_rank,
    stack_blend,
    write_adapter,
)
from merging.base import Base
from merging.blend import Blend
from merging.checkpoint import read_header
from merging.dense import blended_modules, dense_weight
from merging.errors import BaseMismatchError, OutputError
from tests.adapters import blend_of, merge_densely, peft_logits, save_adapter
from tests.merging.tiny import base_of
from tests.models import tiny_model

TOKENS = [5, 17, 120, 44, 9, 200, 31]


def two_adapters(folder: Path, model: PreTrainedModel) -> tuple[Adapter, Adapter]:
    """Of unequal rank, alpha, patterns and targets."""
    kinds = [name.rpartition(".")[2] for name in base_of(model).linears]
    some = set(kinds[:3])
    patterns = {"rank_pattern": {kinds[1]: 2}, "alpha_pattern": {kinds[1]: 7}}
    first = save_adapter(folder / "a", model, seed=1, r=3, lora_alpha=5, **patterns)
    second = save_adapter(
        folder / "b", model, seed=2, r=5, use_rslora=True, target_modules=sorted(some)
    )
    return read_adapter(first), read_adapter(second)


def written(folder: Path, blend: Blend, base: Base, **options: object) -> Path:
    """The folder of an exported blend."""
    exported = stack_blend(blend, base)
    if options.pop("pad", False):
        exported = pad_rank(exported)
    folder.mkdir()
    write_adapter(folder, exported, base, base_name="org/tiny", **options)  # type: ignore[arg-type]
    return folder


def merged_logits(model: PreTrainedModel, base: Base, blend: Blend) -> torch.Tensor:
    merge_densely(model, base, blend)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0]


@pytest.mark.parametrize("family", ["llama", "llama-untied", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("pad", [False, True])
def test_logits_in_peft_are_those_of_the_blend(tmp_path: Path, family: str, pad: bool) -> None:
    """Whatever the ranks, scales, signs and the layout of the weights, with zeros or without."""
    model = tiny_model(family)
    base = base_of(model)
    first, second = two_adapters(tmp_path, model)
    blend = blend_of(base, {first: 0.7, second: -0.4})
    logits = peft_logits(model, written(tmp_path / "out", blend, base, pad=pad), TOKENS)
    expected = merged_logits(model, base, blend)
    assert torch.allclose(logits.log_softmax(-1), expected.log_softmax(-1), atol=1e-4)


def test_coefficients_by_module(tmp_path: Path) -> None:
    """A gradient is exact, and a module with coefficient zero has no factors of that adapter."""
    model = tiny_model()
    base = base_of(model)
    first, second = two_adapters(tmp_path, model)
    row = torch.linspace(0, 1, len(base.linears))
    blend = blend_of(base, {first: row, second: 1 - row})
    exported = stack_blend(blend, base)
    name = next(iter(base.linears))
    assert exported.factors[name].rank == second.factors[name].rank
    logits = peft_logits(model, written(tmp_path / "out", blend, base), TOKENS)
    assert torch.allclose(logits, merged_logits(model, base, blend), atol=1e-4)


def test_it_is_read_back_as_a_source(tmp_path: Path) -> None:
    """It fits its base, whose digest it records, and no other; its delta is the blend's."""
    model = tiny_model()
    base = base_of(model)
    first, second = two_adapters(tmp_path, model)
    blend = blend_of(base, {first: 2.0, second: 0.5})
    folder = written(tmp_path / "out", blend, base)
    adapter = read_adapter(folder)
    assert check_adapter(adapter, base) == []
    with pytest.raises(BaseMismatchError, match="another base"):
        check_adapter(adapter, replace(base, digest="sha256:" + "1" * 64))
    assert adapter.base_digest == base.digest
    assert read_header(folder / "adapter_model.safetensors").metadata["base_digest"] == base.digest
    for module, weight in model.named_parameters():
        name = module.removesuffix(".weight")
        if name in adapter.factors:
            factor = adapter.factors[name]
            delta = dense_weight(blend, base, name, weight.detach()) - weight.detach()
            assert torch.allclose(factor.scale * factor.b @ factor.a, delta, atol=1e-5)


def test_the_config_scales_by_one_without_its_patterns(tmp_path: Path) -> None:
    """A reader that does not know patterns scales rightly: r equals alpha."""
    model = tiny_model()
    base = base_of(model)
    first, second = two_adapters(tmp_path, model)
    folder = written(tmp_path / "out", blend_of(base, {first: 1.0, second: 1.0}), base)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) <= {2, 3, 5, 7}
    assert set(config["target_modules"]) == set(first.factors) | set(second.factors)
    assert config["base_model_name_or_path"] == "org/tiny"


def test_padding_makes_ranks_equal(tmp_path: Path) -> None:
    """Then there are no patterns."""
    model = tiny_model()
    base = base_of(model)
    first, second = two_adapters(tmp_path, model)
    folder = written(tmp_path / "out", blend_of(base, {first: 1.0, second: 1.0}), base, pad=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {}
    assert {f.rank for f in read_adapter(folder).factors.values()} == {8}


def test_a_smaller_rank_is_the_closest_and_its_error_is_told(tmp_path: Path) -> None:
    """The factors are the truncated SVD of the dense delta, and so is the error."""
    model = tiny_model()
    base = base_of(model)
    first, second = two_adapters(tmp_path, model)
    blend = blend_of(base, {first: 1.0, second: -1.5})
    exact = stack_blend(blend, base)
    cut = cut_rank(exact, 4)
    assert cut.max_rank == 4
    lost = whole = 0.0
    for module, factor in exact.factors.items():
        dense = (factor.b @ factor.a).double()
        s = torch.linalg.svdvals(dense)
        left = cut.factors[module].b.double() @ cut.factors[module].a.double()
        assert torch.linalg.norm(dense - left) == pytest.approx(float(s[4:].norm()), abs=1e-5)
        if factor.rank > 4:
            assert cut.errors[module] == pytest.approx(float(s[4:].norm() / s.norm()), abs=1e-5)
        else:
            assert module not in cut.errors
        lost, whole = lost + float((s[4:] ** 2).sum()), whole + float((s**2).sum())
    assert cut.error == pytest.approx((lost / whole) ** 0.5, abs=1e-5)


def test_a_rank_that_suffices_changes_nothing(tmp_path: Path) -> None:
    """No error, and the same factors."""
    model = tiny_model()
    base = base_of(model)
    exact = stack_blend(blend_of(base, {two_adapters(tmp_path, model)[0]: 1.0}), base)
    cut = cut_rank(exact, 3)
    assert (cut.error, dict(cut.errors)) == (0.0, {})
    assert all(cut.factors[m] is factor for m, factor in exact.factors.items())


def test_what_is_no_sum_of_deltas_is_refused(tmp_path: Path) -> None:
    """A scaled base and an empty blend, each with its reason."""
    model = tiny_model()
    base = base_of(model)
    adapter = two_adapters(tmp_path, model)[0]
    scales = torch.ones(len(base.linears))
    scales[1] = 0.5
    plain = blend_of(base, {adapter: 1.0})
    scaled = Blend("x", plain.adapters, plain.coefficients, scales)
    with pytest.raises(OutputError, match=r"k_proj.*as a checkpoint"):
        stack_blend(scaled, base)
    stack_blend(Blend("x", plain.adapters, plain.coefficients, torch.ones(len(base.linears))), base)
    with pytest.raises(OutputError, match="nothing"):
        stack_blend(blend_of(base, {adapter: 0.0}), base)


def test_a_dtype_that_cannot_hold_it_is_refused(tmp_path: Path) -> None:
    """Infinite factors are never written."""
    model = tiny_model()
    base = base_of(model)
    blend = blend_of(base, {two_adapters(tmp_path, model)[0]: 1e7})
    with pytest.raises(OutputError, match=r"float16.*bfloat16"):
        written(tmp_path / "out", blend, base, dtype=torch.float16)
    large = read_adapter(save_adapter(tmp_path / "large", model, std=100.0))
    with pytest.raises(OutputError, match="not finite"):
        stack_blend(blend_of(base, {large: 3e38}), base)


def test_what_servers_refuse_is_said(tmp_path: Path) -> None:
    """The rank that vLLM must be given or does not take, patterns, and the head."""
    model = tiny_model("llama-untied")
    base = base_of(model)
    first = read_adapter(save_adapter(tmp_path / "a", model, r=12, rank_pattern={"q_proj": 2}))
    head = replace(
        first, factors={"lm_head": LowRank(torch.ones(600, 32), torch.ones(259, 600), 1.0)}
    )
    exported = stack_blend(blend_of(base, {first: 1.0}), base)
    text = " ".join(caveats(exported, base))
    assert "--max-lora-rank 16" in text
    assert "--uniform-rank" in text
    assert "--uniform-rank" not in " ".join(caveats(pad_rank(exported), base))
    text = " ".join(caveats(stack_blend(blend_of(base, {head: 1.0}), base), base))
    assert "512 at most" in text
    assert "lm_head" in text


def test_dense_weights_are_those_of_merging_by_hand(tmp_path: Path) -> None:
    """Also where the base is scaled, and where weights are kept [in, out]."""
    model = tiny_model("gpt2")
    base = base_of(model)
    adapter = two_adapters(tmp_path, model)[0]
    plain = blend_of(base, {adapter: 0.5})
    scales = torch.full((len(base.linears),), 0.25)
    blend = Blend("x", plain.adapters, plain.coefficients, scales)
    name = next(iter(adapter.factors))
    before = model.get_submodule(name).weight.detach().clone()
    merge_densely(model, base, plain)
    delta = model.get_submodule(name).weight.detach() - before
    assert torch.allclose(dense_weight(blend, base, name, before), 0.25 * before + delta, atol=1e-6)
    assert blended_modules(plain, base) == [m for m in base.linears if m in adapter.factors]
    assert blended_modules(blend, base) == list(base.linears)
