"""Adapters on disk: what is read, every reason for what is refused, and whether they fit a base."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.adapter import Adapter, LowRank, check_adapter, read_adapter
from merging.errors import BaseMismatchError, SourceError
from tests.merging.tiny import PREFIX, factors, flat_adapter, flat_base, write_adapter

Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"


def reasons(folder: Path) -> tuple[str, ...]:
    with pytest.raises(SourceError) as error:
        read_adapter(folder)
    return error.value.reasons


def test_factors_come_with_their_scale(tmp_path: Path) -> None:
    """Each module has its lora_A and lora_B as they were saved, and alpha / r."""
    tensors = factors(Q0, Q1)
    adapter = read_adapter(write_adapter(tmp_path, tensors, base_model_name_or_path="org/base"))
    assert list(adapter.factors) == [Q0, Q1]
    assert torch.equal(adapter.factors[Q0].a, tensors[f"{Q0}.lora_A.weight"])
    assert torch.equal(adapter.factors[Q1].b, tensors[f"{Q1}.lora_B.weight"])
    assert [factor.scale for factor in adapter.factors.values()] == [2.0, 2.0]
    assert [factor.rank for factor in adapter.factors.values()] == [2, 2]
    assert (adapter.base_name, adapter.base_digest, adapter.path) == ("org/base", None, tmp_path)
    assert adapter.num_bytes == 2 * (2 * 4 + 4 * 2) * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_dtype_on_disk_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    """Reading converts nothing."""
    tensors = {name: tensor.to(dtype) for name, tensor in factors(Q0).items()}
    factor = read_adapter(write_adapter(tmp_path, tensors)).factors[Q0]
    assert (factor.a.dtype, factor.b.dtype) == (dtype, dtype)


def test_an_adapter_in_memory_outlives_its_files(tmp_path: Path) -> None:
    """Changing the folder does not change an adapter that was read from it."""
    tensors = factors(Q0)
    adapter = read_adapter(write_adapter(tmp_path, tensors))
    write_adapter(tmp_path, {name: torch.zeros_like(t) for name, t in tensors.items()})
    assert torch.equal(adapter.factors[Q0].a, tensors[f"{Q0}.lora_A.weight"])


@pytest.mark.parametrize("key", ["base_digest", "base_model_digest"])
def test_the_recorded_digest_of_the_base_is_read(tmp_path: Path, key: str) -> None:
    """Either key of the metadata tells which base the adapter is for."""
    folder = write_adapter(tmp_path, factors(Q0), {key: "sha256:abc"})
    assert read_adapter(folder).base_digest == "sha256:abc"


def test_the_digest_is_of_content_alone(tmp_path: Path) -> None:
    """Path, metadata and training settings do not matter to it."""
    one = read_adapter(write_adapter(tmp_path / "one", factors(Q0)))
    other = read_adapter(
        write_adapter(
            tmp_path / "two",
            factors(Q0),
            {"base_digest": "x"},
            lora_dropout=0.5,
            base_model_name_or_path="elsewhere",
            target_modules=["q_proj"],
            fan_in_fan_out=True,
        )
    )
    assert one.digest == other.digest


def test_the_digest_is_of_the_scale_not_of_how_it_is_written(tmp_path: Path) -> None:
    """alpha 4 at rank 2 is alpha_pattern 4 at any alpha: equal deltas, equal digests."""
    one = read_adapter(write_adapter(tmp_path / "one", factors(Q0)))
    other = read_adapter(
        write_adapter(tmp_path / "two", factors(Q0), lora_alpha=9, alpha_pattern={"q_proj": 4})
    )
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "change",
    ["alpha", "rslora", "a", "b", "dtype", "module"],
)
def test_the_digest_sees_whatever_changes_the_result(tmp_path: Path, change: str) -> None:
    """Another scale, value, dtype or module is another adapter."""
    before = read_adapter(write_adapter(tmp_path / "before", factors(Q0))).digest
    tensors = factors(Q1 if change == "module" else Q0)
    config = {"alpha": {"lora_alpha": 5}, "rslora": {"use_rslora": True}}.get(change, {})
    if change in ("a", "b"):
        tensors[f"{Q0}.lora_{change.upper()}.weight"][0, 0] += 1
    if change == "dtype":
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    assert read_adapter(write_adapter(tmp_path / "after", tensors, **config)).digest != before


def test_a_missing_half_of_a_pair_is_named(tmp_path: Path) -> None:
    """lora_A without lora_B, and the reverse, are two reasons."""
    tensors = {**factors(Q0), **factors(Q1)}
    del tensors[f"{Q0}.lora_A.weight"], tensors[f"{Q1}.lora_B.weight"]
    found = reasons(write_adapter(tmp_path, tensors))
    assert found == (f"{Q0}: has lora_B, and no lora_A", f"{Q1}: has lora_A, and no lora_B")


def test_the_tensors_must_have_the_rank_of_the_config(tmp_path: Path) -> None:
    """A rank that differs from the config's is a reason with both ranks."""
    (reason,) = reasons(write_adapter(tmp_path, factors(Q0, rank=3)))
    assert "of rank 3, and the config gives it rank 2" in reason


def test_one_mistake_of_many_modules_is_one_reason(tmp_path: Path) -> None:
    """A config with the wrong rank does not list every module of the model."""
    modules = [f"model.layers.{i}.self_attn.q_proj" for i in range(9)]
    (reason,) = reasons(write_adapter(tmp_path, factors(*modules, rank=3)))
    assert "and 5 more: has lora_A" in reason


def test_a_rank_that_is_refused_refuses_no_tensor(tmp_path: Path) -> None:
    """Without a rank in the config there is nothing to compare with."""
    (reason,) = reasons(write_adapter(tmp_path, factors(Q0), r="two"))
    assert reason.startswith("r must be a positive integer")


def test_a_pair_must_have_one_rank(tmp_path: Path) -> None:
    """Factors that cannot be multiplied are refused with both shapes."""
    tensors = factors(Q0)
    tensors[f"{Q0}.lora_B.weight"] = torch.randn(4, 3)
    (reason,) = reasons(write_adapter(tmp_path, tensors))
    assert "lora_A [2, 4], lora_B [4, 3], which are of different ranks" in reason


def test_convolutions_are_refused(tmp_path: Path) -> None:
    """Factors of more than two dimensions are not of a linear layer."""
    tensors = factors(Q0)
    tensors[f"{Q0}.lora_A.weight"] = torch.randn(2, 4, 1, 1)
    (reason,) = reasons(write_adapter(tmp_path, tensors))
    assert "only linear layers" in reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """One NaN or infinity anywhere is a reason that names its tensor."""
    tensors = factors(Q0, Q1)
    tensors[f"{Q1}.lora_B.weight"][3, 1] = value
    (reason,) = reasons(write_adapter(tmp_path, tensors))
    assert reason == f"{Q1}: lora_B holds NaN or infinite values"


def test_factors_must_be_floating_point(tmp_path: Path) -> None:
    """Quantised factors are refused by their dtype."""
    tensors = {name: tensor.to(torch.int8) for name, tensor in factors(Q0).items()}
    assert "torch.int8, not a floating-point tensor" in reasons(write_adapter(tmp_path, tensors))[0]


def test_tensors_that_are_not_understood_are_named(tmp_path: Path) -> None:
    """Extra tensors are never ignored, and at most four of them are spelled out."""
    extra = {f"model.layers.{i}.lora_C.weight": torch.zeros(1) for i in range(6)}
    (reason,) = reasons(write_adapter(tmp_path, {**factors(Q0), **extra}))
    assert f"{PREFIX}model.layers.0.lora_C.weight" in reason
    assert reason.endswith("and 2 more")


def test_endless_names_are_refused(tmp_path: Path) -> None:
    """A tensor's name is bounded, and one that is longer is not repeated in the reason."""
    found = reasons(write_adapter(tmp_path, {**factors(Q0), **factors("q" * 1000)}))
    assert found == ("it has tensor names of more than 160 characters",)


def test_the_name_of_an_adapter_inside_keys_is_not_understood(tmp_path: Path) -> None:
    """A raw state dict, with `default` in its keys, is not what PEFT saves."""
    tensors = {k.replace(".weight", ".default.weight"): v for k, v in factors(Q0).items()}
    found = reasons(write_adapter(tmp_path, tensors))
    assert "lora_A.default.weight" in found[0]
    assert found[1] == "it has no lora_A and lora_B tensors"


def test_names_without_the_prefix_of_peft_are_not_understood(tmp_path: Path) -> None:
    """PEFT passes over such tensors in silence; here they are refused."""
    folder = write_adapter(tmp_path, {})
    save_file(factors(Q0), folder / "adapter_model.safetensors")
    found = reasons(folder)
    assert found[0].startswith("it has tensors that PEFT does not write: model.layers.0")


@pytest.mark.parametrize(
    ("key", "feature"),
    [
        (f"{Q0}.lora_magnitude_vector", "use_dora"),
        ("model.embed_tokens.lora_embedding_A", "lora_embedding"),
        (f"{Q0}.lora_B.bias", "lora_bias"),
        (f"{Q0}.base_layer.token_adapter.trainable_tokens_delta", "trainable_token_indices"),
        (f"{Q0}.bias", "bias"),
        (f"{Q0}.lora_diag", "kasa_config"),
    ],
)
def test_tensors_give_a_feature_away(tmp_path: Path, key: str, feature: str) -> None:
    """Whatever the config says, the tensors of a feature are refused by the feature's name."""
    folder = write_adapter(tmp_path, {**factors(Q0), key: torch.zeros(2)})
    (reason,) = reasons(folder)
    assert reason.startswith(f"{feature} is not supported")


def test_config_and_tensors_give_one_reason(tmp_path: Path) -> None:
    """A feature that shows in both places is not refused twice."""
    tensors = {**factors(Q0), f"{Q0}.lora_magnitude_vector": torch.zeros(4)}
    assert len(reasons(write_adapter(tmp_path, tensors, use_dora=True))) == 1


def test_every_reason_is_collected(tmp_path: Path) -> None:
    """Config, names, shapes and values are all reported at once."""
    tensors = {**factors(Q0), **factors(Q1, rank=3), "odd": torch.zeros(1)}
    tensors[f"{Q0}.lora_A.weight"][0, 0] = math.nan
    found = reasons(write_adapter(tmp_path, tensors, bias="all", invented=True))
    assert len(found) == 5


def test_another_kind_of_adapter_has_one_reason(tmp_path: Path) -> None:
    """What follows from being no LoRA is not listed."""
    folder = write_adapter(
        tmp_path, {"prompt_embeddings": torch.zeros(2)}, peft_type="PROMPT_TUNING"
    )
    (reason,) = reasons(folder)
    assert "'PROMPT_TUNING' is not supported" in reason


def test_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """adapter_model.bin is never opened."""
    folder = write_adapter(tmp_path, factors(Q0))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    (reason,) = reasons(folder)
    assert "adapter_model.bin" in reason
    assert "convert it to safetensors" in reason


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """Safetensors of another name are not taken for the adapter's."""
    folder = write_adapter(tmp_path, factors(Q0))
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    (reason,) = reasons(folder)
    assert reason.endswith("adapter_model.safetensors is missing")


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    """Half a file is refused with its path."""
    path = write_adapter(tmp_path, factors(Q0)) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "truncated" in reasons(tmp_path)[0]


BASE = flat_base()


def adapter(tmp_path: Path, **fields: object) -> Adapter:
    read = read_adapter(write_adapter(tmp_path, factors(Q0, Q1)))
    return dataclasses.replace(read, **fields)  # type: ignore[arg-type]


def test_an_adapter_that_fits_has_no_warnings(tmp_path: Path) -> None:
    """Same modules, same shapes, nothing recorded: nothing to say."""
    assert check_adapter(adapter(tmp_path), BASE) == []


def test_the_same_base_under_another_name_is_fine(tmp_path: Path) -> None:
    """If the digest agrees the name does not matter."""
    fitting = adapter(tmp_path, base_name="elsewhere", base_digest=BASE.digest)
    assert check_adapter(fitting, BASE) == []


def test_a_digest_may_leave_out_its_algorithm(tmp_path: Path) -> None:
    """Bare hex digits are the same digest."""
    bare = adapter(tmp_path, base_digest=BASE.digest.removeprefix("sha256:").upper())
    assert check_adapter(bare, BASE) == []


@pytest.mark.parametrize("name", ["flat", "org/flat", "/some/where/Flat/"])
def test_the_last_part_of_a_name_is_what_counts(tmp_path: Path, name: str) -> None:
    """A hub id, a path and a folder's name may all mean one base."""
    assert check_adapter(adapter(tmp_path, base_name=name), BASE) == []


def test_another_name_is_a_warning(tmp_path: Path) -> None:
    """A name proves nothing: it is reported, and the adapter is taken."""
    (warning,) = check_adapter(adapter(tmp_path, base_name="org/other"), BASE)
    assert "'org/other'" in warning
    assert "'flat'" in warning


def test_another_digest_is_refused(tmp_path: Path) -> None:
    """A digest proves another base; both digests are shown."""
    with pytest.raises(BaseMismatchError, match="sha256:aa") as error:
        check_adapter(adapter(tmp_path, base_digest="sha256:aa"), BASE)
    assert BASE.digest in str(error.value)


def test_another_digest_can_be_allowed(tmp_path: Path) -> None:
    """With allow_base_mismatch it is a warning, which does not repeat the name."""
    other = adapter(tmp_path, base_digest="sha256:aa", base_name="org/other")
    (warning,) = check_adapter(other, BASE, allow_base_mismatch=True)
    assert "sha256:aa" in warning


def test_unknown_modules_are_refused(tmp_path: Path) -> None:
    """Modules that the base does not have are named."""
    read = read_adapter(write_adapter(tmp_path, factors("model.layers.9.mlp.up_proj", Q0)))
    with pytest.raises(SourceError, match=r"no linear layer named model\.layers\.9\.mlp\.up_proj$"):
        check_adapter(read, BASE)


def test_modules_that_are_missing_are_refused(tmp_path: Path) -> None:
    """An adapter that targets a kind of module in all layers must have factors for all of them."""
    targets = ["q_proj", "lm_head", "proj"]
    whole = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(4)]
    fits = write_adapter(tmp_path / "a", factors(*whole, "lm_head"), target_modules=targets)
    assert check_adapter(read_adapter(fits), BASE) == []
    partial = write_adapter(tmp_path / "b", factors(*whole[:3]), target_modules=targets)
    with pytest.raises(SourceError, match=r"targets model\.layers\.3\.self_attn\.q_proj, lm_head,"):
        check_adapter(read_adapter(partial), BASE)
    some = write_adapter(tmp_path / "c", factors(Q0), target_modules=targets, layers_to_transform=0)
    assert check_adapter(read_adapter(some), BASE) == []


def test_wrong_shapes_are_refused_with_both_shapes(tmp_path: Path) -> None:
    """Modules of one wrong shape make one reason, which has the adapter's shape and the base's."""
    tensors = {**factors(Q0, Q1, in_features=8), **factors("lm_head", out_features=5)}
    with pytest.raises(SourceError) as error:
        check_adapter(read_adapter(write_adapter(tmp_path, tensors)), BASE)
    assert error.value.reasons == (
        "lm_head: the adapter is for [5, 4] [out, in], the base has [4, 4]",
        f"{Q0}, {Q1}: the adapter is for [4, 8] [out, in], the base has [4, 4]",
    )


def test_factors_beyond_the_base_s_dtype_are_refused() -> None:
    """Numbers that are finite in the file but infinite in the base's dtype are named."""
    base = dataclasses.replace(flat_base(num_layers=1), dtype="float16")
    adapter = flat_adapter(base, "sha256:1")
    large = {name: LowRank(f.a * 1e6, f.b, f.scale) for name, f in adapter.factors.items()}
    check_adapter(adapter, base)
    with pytest.raises(SourceError, match="too large for the base's float16"):
        check_adapter(dataclasses.replace(adapter, factors=large), base)


def test_allowing_a_mismatch_does_not_allow_wrong_shapes(tmp_path: Path) -> None:
    """Shapes are refused in any case, and all reasons come together."""
    wrong = read_adapter(write_adapter(tmp_path, factors(Q0, in_features=8), {"base_digest": "aa"}))
    with pytest.raises(SourceError, match="the base has"):
        check_adapter(wrong, BASE, allow_base_mismatch=True)
    with pytest.raises(BaseMismatchError) as error:
        check_adapter(wrong, BASE)
    assert len(error.value.reasons) == 2


def test_a_head_of_tied_embeddings_is_a_warning(tmp_path: Path) -> None:
    """An adapter on a tied head is served, and what it does is said."""
    tied = dataclasses.replace(BASE, ties={"lm_head.weight": "model.embed_tokens.weight"})
    (warning,) = check_adapter(read_adapter(write_adapter(tmp_path, factors("lm_head"))), tied)
    assert warning.startswith("lm_head shares its weights with the embedding")


def test_tying_the_head_is_refused(tmp_path: Path) -> None:
    """ensure_weight_tying changes the embedding too, so it is refused for a head only."""
    folder = write_adapter(tmp_path / "head", factors("lm_head"), ensure_weight_tying=True)
    assert "lm_head: ensure_weight_tying is not supported" in reasons(folder)[0]
    read_adapter(write_adapter(tmp_path / "layer", factors(Q0), ensure_weight_tying=True))


HEAD = torch.arange(16.0).reshape(4, 4)
COPY = {"lm_head.base_layer.weight": HEAD, "model.embed_tokens.weight": HEAD + 1}


def lookup(name: str) -> torch.Tensor | None:
    return {"lm_head.weight": HEAD, "model.embed_tokens.weight": HEAD + 1}.get(name)


def test_copies_of_the_base_are_ignored_if_they_are_equal(tmp_path: Path) -> None:
    """PEFT saves tensors of the base itself; equal ones change nothing, in whatever dtype."""
    tensors = {**factors(Q0), **{name: tensor.bfloat16() for name, tensor in COPY.items()}}
    read = read_adapter(write_adapter(tmp_path, tensors))
    assert set(read.base_copies) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert check_adapter(read, BASE, base_tensor=lookup) == []


def test_copies_do_not_count_in_the_digest(tmp_path: Path) -> None:
    """An adapter with copies of the base is the same adapter."""
    one = read_adapter(write_adapter(tmp_path / "one", factors(Q0)))
    other = read_adapter(write_adapter(tmp_path / "two", {**factors(Q0), **COPY}))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("lm_head.base_layer.weight", HEAD + 0.5, r"lm_head\.weight with other values"),
        ("model.embed_tokens.weight", torch.zeros(5, 4), "or another shape than the base's"),
        ("model.norm.weight", torch.zeros(4), r"model\.norm\.weight, which is neither"),
    ],
)
def test_trained_copies_are_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor, words: str
) -> None:
    """A saved tensor that differs from the base's was trained or resized: it is refused."""
    read = read_adapter(write_adapter(tmp_path, {**factors(Q0), name: tensor}))
    with pytest.raises(SourceError, match=words):
        check_adapter(read, BASE, base_tensor=lookup)


def test_copies_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    """Without the base's tensors nothing is taken on trust."""
    read = read_adapter(write_adapter(tmp_path, {**factors(Q0), **COPY}))
    with pytest.raises(SourceError, match="not at hand to compare") as error:
        check_adapter(read, BASE)
    assert len(error.value.reasons) == 2
