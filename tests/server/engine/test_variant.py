"""A variant computes what a model with its weights computes, and keeps only what it changes."""

import gc
import json
import random
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merging.blend import Blend
from merging.errors import SourceError
from server.engine import kernels
from server.engine.errors import VariantError
from server.engine.group import Group
from server.engine.kernels import PackedKernel, PlainKernel
from server.engine.layer_stack import LayerStack
from server.engine.loading import load_engine
from server.engine.options import EngineOptions
from server.engine.probe import check_variant
from server.engine.request import Member, Request, SamplingParams
from server.engine.scheduler import active_rank
from server.engine.variant import Variant
from tests.adapters import blend_of
from tests.models import FAMILIES as MODELS
from tests.models import save_tiny_model
from tests.server.engine.conftest import (
    Bench,
    make_bench,
    naive_greedy,
    naive_logprobs,
    random_prompt,
)
from tests.server.engine.variants import (
    dense_model,
    make_variant,
    own_layers,
    random_changes,
    source_name,
    write,
)

FAMILIES = ("llama", "llama-untied", "qwen2", "gpt2", "gemma2", "gemma3", "phi3", "gpt-neox")
STACK = (0, 1, 0, 1, 2)


def assert_computes(group: Group, model: PreTrainedModel) -> None:
    """The group has the greedy text and the prompt's log-probabilities of `model`."""
    prompt = group.rows[0].tokens[: group.rows[0].num_prompt]
    assert naive_greedy(model, prompt, 12) == group.output_tokens
    actual = torch.tensor([token.logprob for token in group.prompt_logprobs[1:]])
    torch.testing.assert_close(actual, naive_logprobs(model, prompt), atol=2e-5, rtol=0)


def read(bench: Bench, *weights: Blend | Variant) -> list[Group]:
    """One request under each of the weights, in one batch."""
    groups = [
        bench.add(random_prompt(21, seed=i), each, prompt_logprobs=0)
        for i, each in enumerate(weights)
    ]
    bench.run()
    return groups


def stack_names(bench: Bench, layers: Sequence[int]) -> list[str]:
    """All names of tensors in a model of those layers."""
    root = next(iter(bench.base.linears)).split(".0.")[0]
    stack = LayerStack(root, tuple(layers))
    return [new for name in bench.reference.state_dict() for new in stack.names(name)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_variant_equals_the_dense_model(family: str, seed: int, tmp_path: Path) -> None:
    """Any set of changed tensors gives the text and log-probabilities of a model with them, beside
    rows of the base, of a blend and of another variant; and these are not changed.
    """
    bench = make_bench(tmp_path, family)
    dice = random.Random(seed)
    names = list(bench.reference.state_dict())
    several = dice.sample(names, len(names) // (seed + 2))
    changes = random_changes(bench, several, own_layers(bench), seed)
    other = random_changes(bench, names, own_layers(bench), seed + 10)
    blend = blend_of(bench.base, {bench.adapter(1): 0.7})
    variants = make_variant(bench, changes, digest="a"), make_variant(bench, other, digest="b")
    groups = read(bench, bench.empty, variants[0], blend, variants[1], variants[0])
    dense = dense_model(bench, changes), dense_model(bench, other)
    models = bench.merged(bench.empty), dense[0], bench.merged(blend), dense[1], dense[0]
    for group, model in zip(groups, models, strict=True):
        assert_computes(group, model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "qwen2"])
def test_every_single_tensor_can_be_changed(family: str, tmp_path: Path) -> None:
    """A change of one tensor alone arrives, of whatever kind it is: also a bias, a norm, a tied
    embedding (the head follows it) and a tied head (the embedding does not).
    """
    bench = make_bench(tmp_path, family)
    names = [n for n in bench.reference.state_dict() if (".1." in n) or ("." + n).count(".") < 4]
    for seed, name in enumerate(names):
        changes = random_changes(bench, [name], own_layers(bench), seed)
        variant = make_variant(bench, changes, digest=name)
        (group,) = read(bench, variant)
        assert_computes(group, dense_model(bench, changes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [STACK, (2, 1), (1, 1, 1, 1)])
def test_stacked_layers_equal_a_model_built_that_way(
    family: str, layers: tuple[int, ...], tmp_path: Path
) -> None:
    """Fewer, more and repeated layers, unchanged and with changes to one of two copies."""
    bench = make_bench(tmp_path, family)
    stack = LayerStack(next(iter(bench.base.linears)).split(".0.")[0], layers)
    names = [name for name in stack_names(bench, layers) if stack.layer_of(name) == 1]
    changes = random_changes(bench, names, layers, 3)
    plain = make_variant(bench, {}, layers, "plain")
    changed = make_variant(bench, changes, layers, "changed")
    groups = read(bench, plain, bench.empty, changed)
    models = (
        dense_model(bench, {}, layers),
        bench.merged(bench.empty),
        dense_model(bench, changes, layers),
    )
    for group, model in zip(groups, models, strict=True):
        assert_computes(group, model)


def test_lists_of_layers_follow_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3 looks up each layer's rotary factors by its kind in the config."""
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    monkeypatch.setitem(MODELS, "mixed", {**MODELS["gemma3"], "layer_types": kinds})
    bench = make_bench(tmp_path, "mixed")
    layers = (1, 0, 2, 0)
    (group,) = read(bench, make_variant(bench, {}, layers))
    assert_computes(group, dense_model(bench, {}, layers))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_changed_is_shared(family: str, tmp_path: Path) -> None:
    """Stacking costs no weights, and a variant's unchanged tensors are the base's own memory."""
    bench = make_bench(tmp_path, family)
    assert make_variant(bench, {}, STACK).num_bytes == 0
    name = next(name for name in bench.base.linears if ".1." in name) + ".weight"
    variant = make_variant(bench, random_changes(bench, [name], own_layers(bench), 0))
    resident = bench.engine._runner._model
    tensors = variant.model.model.state_dict(keep_vars=True)
    assert tensors.keys() == resident.model.state_dict().keys()
    for path, tensor in resident.model.state_dict().items():
        assert tensors[path].data_ptr() == tensor.data_ptr()
    written = 0
    for path, linear in variant.model.linears.items():
        base = resident.linears[path].siblings
        assert linear.siblings is not base
        if linear.siblings.kernel is not base.kernel:
            written += linear.out_features * linear.in_features
            assert ".1." in path
        assert linear.siblings.bias is base.bias
    assert variant.num_bytes == 4 * written > 0


def test_siblings_must_be_written_too(bench: Bench) -> None:
    """Linears that share a product are rewritten together, norms and biases alone."""
    layer = "model.layers.1"
    names = [f"{layer}.self_attn.k_proj.weight", f"{layer}.input_layernorm.weight"]
    unfinished = bench.variants.start("x", own_layers(bench), names)
    projections = {f"{layer}.self_attn.{kind}_proj.weight" for kind in "qkv"}
    assert unfinished.names == projections | {names[1]}
    assert unfinished.tensor(names[0]).shape == (16, 32)


def test_names_are_those_of_the_stack(bench: Bench) -> None:
    """A tensor of a layer that only the stack has is known, one that it lacks is an error."""
    name = "model.layers.4.mlp.up_proj.weight"
    assert name in bench.variants.start("x", STACK, [name]).names
    with pytest.raises(VariantError, match=r"no tensors model\.layers\.4\.mlp\.up_proj\.weight"):
        bench.variants.start("x", own_layers(bench), [name])


def test_wrong_layers_and_names_are_named(bench: Bench) -> None:
    with pytest.raises(VariantError, match=r"no tensors lm_hat\.weight, model\.norm\.bias"):
        bench.variants.start("x", own_layers(bench), ["model.norm.bias", "lm_hat.weight"])
    with pytest.raises(VariantError, match=r"layers \[3, -1\] do not exist: the model has 3"):
        bench.variants.start("x", [0, 3, -1], [])
    with pytest.raises(VariantError, match="do not exist"):
        bench.variants.start("x", [], [])


def test_weights_that_a_checkpoint_keeps_transposed(tmp_path: Path) -> None:
    """GPT-2's linears are written in the shape that its checkpoints have."""
    bench = make_bench(tmp_path, "gpt2")
    name = "transformer.h.0.mlp.c_fc.weight"
    unfinished = bench.variants.start("x", own_layers(bench), [name])
    assert unfinished.tensor(name).shape == bench.reference.state_dict()[name].shape == (32, 128)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_packing_while_running_changes_no_text(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine goes on while another thread packs; the plain weights are let go."""
    bench = make_bench(tmp_path, family)
    if bench.engine._runner._model.device.type != "cpu":
        pytest.skip("only CPUs pack")
    names = stack_names(bench, STACK)
    changes = random_changes(bench, names, STACK, 0)
    variant = make_variant(bench, changes, STACK)
    siblings = [linear.siblings for linear in variant.model.linears.values()]
    plain = [weakref.ref(each.kernel.weight) for each in siblings]  # type: ignore[attr-defined]
    groups = [bench.add(random_prompt(9, i), variant, max_tokens=60) for i in range(3)]
    monkeypatch.setattr("server.engine.blended.choose_kernel", PackedKernel)
    thread = threading.Thread(target=variant.pack)
    bench.step()
    thread.start()
    bench.run()
    thread.join()
    late = bench.add(random_prompt(9), variant, max_tokens=60)
    bench.run()
    assert all(isinstance(each.kernel, PackedKernel) for each in siblings)
    assert all(weight() is None for weight in plain)
    model = dense_model(bench, changes, STACK)
    for seed, group in enumerate([*groups, late]):
        assert naive_greedy(model, random_prompt(9, seed % 3), 60) == group.output_tokens


def test_the_base_keeps_its_kernels_when_a_variant_is_packed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared kernels are not the variant's to replace."""
    monkeypatch.setattr("server.engine.blended.choose_kernel", PackedKernel)
    names = ["model.layers.0.mlp.down_proj.weight"]
    variant = make_variant(bench, random_changes(bench, names, own_layers(bench), 0))
    variant.pack()
    packed = [
        name
        for name, linear in variant.model.linears.items()
        if isinstance(linear.siblings.kernel, PackedKernel)
    ]
    assert packed == ["model.layers.0.mlp.down_proj"]


def test_a_packed_tied_head_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new embedding's head reads the same memory, and takes as much again where it is packed."""
    name = "model.embed_tokens.weight"
    changes = random_changes(bench, [name], own_layers(bench), 0)
    variant = make_variant(bench, changes)
    kernel = variant.model.linears["lm_head"].siblings.kernel
    embedding = variant.model.model.get_input_embeddings().weight
    assert isinstance(kernel, PlainKernel)
    assert kernel.weight.data_ptr() == embedding.data_ptr()
    assert variant.num_bytes == embedding.nbytes
    monkeypatch.setattr("server.engine.variant.can_pack", lambda weight: True)
    assert make_variant(bench, changes).num_bytes == 2 * embedding.nbytes


def test_a_dropped_variant_is_freed(bench: Bench) -> None:
    """When the last request on it has ended, nothing holds a variant's memory, without a
    collection of cycles.
    """
    names = list(bench.reference.state_dict())
    variant = make_variant(bench, random_changes(bench, names, own_layers(bench), 0))
    tensors = [weakref.ref(tensor) for tensor in variant.model.model.parameters()]
    tensors += [
        weakref.ref(linear.siblings.kernel.weight)  # type: ignore[attr-defined]
        for linear in variant.model.linears.values()
    ]
    group = bench.add(random_prompt(9), variant)
    whole = weakref.ref(variant)
    gc.collect()
    gc.disable()
    try:
        del variant
        bench.step()
        assert whole() is not None
        bench.run()
        bench.outputs.clear()
        del group
        assert whole() is None
        assert all(tensor() is None for tensor in tensors)
    finally:
        gc.enable()


def test_prefix_is_reused_only_under_the_same_digest(bench: Bench) -> None:
    """Variants share the cache of a prompt with rows of their digest alone, even when the variant
    was made again in between.
    """
    prompt, layers = random_prompt(33), own_layers(bench)
    names = list(bench.reference.state_dict())
    changes = random_changes(bench, names, layers, 0)
    others = random_changes(bench, names, layers, 1)
    first = bench.add(prompt, make_variant(bench, changes, digest="a"))
    bench.run()
    again = bench.add(prompt, make_variant(bench, changes, digest="a"))
    other = bench.add(prompt, make_variant(bench, others, digest="b"))
    base = bench.add(prompt)
    bench.run()
    assert [group.num_cached_tokens for group in (first, again, other, base)] == [0, 32, 0, 0]
    expected = naive_greedy(dense_model(bench, changes), prompt, 12)
    assert first.output_tokens == again.output_tokens == expected
    assert other.output_tokens == naive_greedy(dense_model(bench, others), prompt, 12)
    assert base.output_tokens == naive_greedy(bench.merged(bench.empty), prompt, 12)


def test_prefix_of_a_deeper_model(bench: Bench) -> None:
    """A deeper variant reuses its own prompts beside rows of others; one that was made again has
    none, because the keys and values of its further layers went with the first.
    """
    prompt = random_prompt(33)
    changes = random_changes(bench, stack_names(bench, STACK), STACK, 0)
    expected = naive_greedy(dense_model(bench, changes, STACK), prompt, 12)
    variant = make_variant(bench, changes, STACK, "a")
    for num_cached in (0, 32):
        group = bench.add(prompt, variant)
        other = bench.add(prompt)
        bench.run()
        assert (group.num_cached_tokens, other.num_cached_tokens) == (num_cached, num_cached)
        assert group.output_tokens == expected
    del variant, group
    bench.outputs.clear()
    again = bench.add(prompt, make_variant(bench, changes, STACK, "a"))
    bench.run()
    assert again.num_cached_tokens == 0
    assert again.output_tokens == expected


def test_the_cache_of_further_layers_goes_with_the_variant(bench: Bench) -> None:
    """What the KV cache takes for a deeper model is told before and after it is built, is its own,
    and is freed with it; a model that is not deeper takes none.
    """
    cache = bench.engine._runner.cache
    own = sum(storage.nbytes for storage in cache._storages)
    variant = make_variant(bench, {}, STACK)
    assert bench.variants.kv_bytes(STACK) == variant.kv_bytes == own // 3 * 2
    further = [weakref.ref(storage) for storage in variant.cache._storages]
    assert sum(storage.nbytes for storage in variant.cache._storages) == variant.kv_bytes
    assert sum(storage.nbytes for storage in cache._storages) == own
    group = bench.add(random_prompt(9), variant)
    bench.run()
    bench.outputs.clear()
    del variant, group
    assert all(storage() is None for storage in further)
    for layers in ((0, 1, 2), (2, 1), (1, 1, 1)):
        shallow = make_variant(bench, {}, layers)
        assert bench.variants.kv_bytes(layers) == shallow.kv_bytes == 0
        assert shallow.cache is cache


def test_rows_of_others_wipe_no_further_layers(bench: Bench) -> None:
    """Blocks that rows of the base are given are wiped in the base's layers alone; those of a
    deeper model are wiped when a row of its own gets them.
    """
    variant = make_variant(bench, {}, STACK)
    (storage, *_) = variant.cache._storages
    storage.fill_(7.0)
    bench.add(random_prompt(20))
    bench.run()
    assert (storage == 7.0).all()
    group = bench.add(random_prompt(20), variant)
    bench.step()
    table = list(group.rows[0].block_table)
    bench.run()
    assert not (storage[:, :, table] == 7.0).any()
    assert group.output_tokens == naive_greedy(dense_model(bench, {}, STACK), random_prompt(20), 12)


def test_random_arrivals_aborts_and_preemption_with_variants(tmp_path: Path) -> None:
    """Blends, a variant and a deeper one share few blocks; every finished text is naive greedy's,
    although the deeper one arrives when the engine has long been running.
    """
    bench = make_bench(tmp_path, kv_memory=0.00004, max_rows=6)
    blend = blend_of(bench.base, {bench.adapter(1): 0.7})
    flat = random_changes(bench, stack_names(bench, (0, 1, 2))[:9], own_layers(bench), 0)
    deep = random_changes(bench, stack_names(bench, STACK), STACK, 1)
    weights: list[Blend | Variant] = [bench.empty, blend, make_variant(bench, flat, digest="flat")]
    dice = random.Random(0)
    groups = []
    for number in range(40):
        if number == 10:
            weights.append(make_variant(bench, deep, STACK, "deep"))
        prompt, index = random_prompt(dice.randint(1, 40), seed=number % 7), number % len(weights)
        groups.append((prompt, index, bench.add(prompt, weights[index], max_tokens=24)))
        for _ in range(dice.randint(0, 6)):
            bench.step()
        if dice.random() < 0.2:
            bench.engine.abort(dice.choice(groups)[2])
        bench.check_integrity()
    bench.run()
    bench.check_integrity()
    models = [
        bench.merged(bench.empty),
        bench.merged(blend),
        dense_model(bench, flat),
        dense_model(bench, deep, STACK),
    ]
    assert any(group.num_preemptions for _, _, group in groups)
    assert any(group.aborted for _, _, group in groups)
    for prompt, index, group in groups:
        if not group.aborted:
            assert naive_greedy(models[index], prompt, 24) == group.output_tokens


def test_rows_of_a_group_may_see_different_models(bench: Bench) -> None:
    """A group of the base, a blend and a variant samples from what its rule makes of all three."""
    names = list(bench.reference.state_dict())
    changes = random_changes(bench, names, own_layers(bench), 0)
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    weights = (make_variant(bench, changes), bench.empty, blend)
    members = tuple(Member(random_prompt(9 + i, i), each) for i, each in enumerate(weights))
    params = SamplingParams(temperature=0, max_tokens=8)
    order = torch.tensor([0.5, 0.3, 0.2])
    rule = lambda logits: (order.to(logits.device)[:, None] * logits).sum(dim=0)  # noqa: E731
    group = bench.engine.add(Request(members, params, rule=rule))
    bench.run()
    models = [dense_model(bench, changes), bench.merged(bench.empty), bench.merged(blend)]
    sequences = [list(member.prompt) for member in members]
    for token in group.output_tokens:
        with torch.inference_mode():
            logits = [
                model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1]
                for model, ids in zip(models, sequences, strict=True)
            ]
        assert token == int(rule(torch.stack(logits)).argmax())
        for ids in sequences:
            ids.append(token)
    assert len(group.output_tokens) == 8


def test_nan_of_a_variant_reaches_nobody(tmp_path: Path) -> None:
    """A broken variant fails its own requests; rows that get its few blocks later are right, in the
    layers that the base does not have too.
    """
    bench = make_bench(tmp_path, kv_memory=0.00006)
    names = [n for n in stack_names(bench, STACK) if ".k_proj." in n or ".v_proj." in n]
    changes = {n: torch.full((16, 32), float("nan")) for n in names}
    broken = make_variant(bench, changes, STACK, "broken")
    good = make_variant(bench, {}, STACK, "good")
    bad, beside = read(bench, broken, good)
    assert bad.finish_reason == "error"
    assert_computes(beside, dense_model(bench, {}, STACK))
    later = [bench.add(random_prompt(40, i), good) for i in range(8)]
    bench.run()
    model = dense_model(bench, {}, STACK)
    for seed, group in enumerate(later):
        assert naive_greedy(model, random_prompt(40, seed), 12) == group.output_tokens


def test_variants_have_no_active_rank(bench: Bench) -> None:
    """The bound on ranks counts the adapters of blends alone."""
    variant = make_variant(bench, {})
    blend = blend_of(bench.base, {bench.adapter(1): 1.0})
    groups = [bench.add(random_prompt(5, i), each) for i, each in enumerate((variant, blend))]
    assert (active_rank(groups[:1]), active_rank(groups)) == (0, 4)
    bench.run()


def test_a_check_beside_the_running_engine(bench: Bench) -> None:
    """A finished variant is tried on another thread while the base serves, and neither disturbs the
    other; one that gives no numbers is refused.
    """
    names = list(bench.reference.state_dict())
    variant = make_variant(bench, random_changes(bench, names, own_layers(bench), 0), STACK[:3])
    broken = make_variant(bench, {"model.norm.weight": torch.full((32,), float("inf"))})
    groups = [bench.add(random_prompt(9, i), max_tokens=80) for i in range(4)]
    failures: list[Exception] = []

    def check() -> None:
        try:
            for _ in range(5):
                check_variant(variant)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    bench.run()
    thread.join()
    assert failures == []
    model = bench.merged(bench.empty)
    for seed, group in enumerate(groups):
        assert naive_greedy(model, random_prompt(9, seed), 80) == group.output_tokens
    with pytest.raises(VariantError, match="not finite"):
        check_variant(broken)


def test_a_layer_that_is_not_run_is_noticed(bench: Bench) -> None:
    """A model that counts its layers elsewhere than in its config would leave out the new ones."""
    variant = make_variant(bench, {}, STACK)
    check_variant(variant)
    variant.model.model.config.num_hidden_layers = 3
    with pytest.raises(VariantError, match="only 3 of the model's 5 layers"):
        check_variant(variant)


def test_a_loaded_model_makes_variants(tmp_path: Path) -> None:
    """What the server loads has what variants are made with: the factory and the base's files."""
    (tmp_path / "link").symlink_to(save_tiny_model(tmp_path / "model"))
    loaded = load_engine(tmp_path / "link", EngineOptions(device="cpu", kv_memory=0.002))
    variant = loaded.variants.start("x", STACK, []).finish()
    assert loaded.weights.folder == tmp_path / "model"
    request = Request((Member((5, 6), variant),), SamplingParams(temperature=0, max_tokens=3))
    group = loaded.engine.add(request)
    while loaded.engine.scheduler.has_work:
        loaded.engine.step()
    assert len(group.output_tokens) == 3


def test_a_quantised_model_is_not_loaded(tmp_path: Path) -> None:
    """Nothing could be merged with its files."""
    folder = save_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"quantization_config of fp8.*dequantise it first"):
        load_engine(folder, EngineOptions(device="cpu", kv_memory=0.002))


def test_source_names_follow_the_stack() -> None:
    """The helper of these tests knows which layer of the base a name comes from."""
    assert source_name("model.layers.3.mlp.up_proj.weight", STACK) == (
        "model.layers.1.mlp.up_proj.weight"
    )
    assert source_name("model.norm.weight", STACK) == "model.norm.weight"


def test_only_bfloat16_is_packed() -> None:
    """Plain float32 stays as it is: there is no faster layout to choose."""
    weight = torch.zeros(4, 4)
    assert not kernels.can_pack(weight)
    assert isinstance(kernels.choose_kernel(weight), PlainKernel)


def test_variants_that_are_made_at_the_same_time(bench: Bench) -> None:
    """Each has memory of its own."""
    name = "model.layers.0.mlp.down_proj.weight"
    layers = own_layers(bench)
    started = [bench.variants.start(digest, layers, [name]) for digest in "ab"]
    changes = [random_changes(bench, [name], layers, seed) for seed in range(2)]
    made = [
        write(bench, unfinished, each, layers)
        for unfinished, each in zip(started, changes, strict=True)
    ]
    for group, each in zip(read(bench, *made), changes, strict=True):
        assert_computes(group, dense_model(bench, each))
