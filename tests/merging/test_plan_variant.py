"""Variants: only what changes is written, by content alone, and what they say of themselves."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.plan import Plan, plan
from merging.recipe import Recipe
from tests.merging.naive import (
    MemoryWeights,
    built,
    perturbed,
    random_adapter,
    state_of,
    with_adapter,
)
from tests.merging.test_plan_paths import BASE, BASE_STATE, RESIDENT, SOURCES, part
from tests.merging.tiny import base_of, tiny_llama

TIED = tiny_llama(2, tied=True)
TIED_BASE, TIED_STATE = base_of(TIED), state_of(TIED, tied=True)
TIED_RESIDENT = MemoryWeights(TIED_STATE, "tied")


def make(method: str, sources: dict[str, Any], given: Any = SOURCES, **fields: Any) -> Plan:
    recipe = Recipe.model_validate({"method": method, "sources": sources, **fields})
    return plan(recipe, given, BASE, weights=RESIDENT)


def written(made: Plan) -> set[str]:
    assert made.variant is not None
    return {tensor.name for tensor in made.variant.tensors}


def test_only_tensors_that_an_adapter_touches_are_written() -> None:
    """All others are the base's own, under their own names."""
    made = make("ties", {"attn": {"weight": 1}})
    assert written(made) == {f"{module}.weight" for module in SOURCES["attn"].factors}
    assert made.variant is not None
    untouched = set(BASE_STATE) - written(made)
    assert made.variant.shared == {name: name for name in untouched}
    assert made.variant.layers == (0, 1, 2)
    items = sum(BASE_STATE[name].numel() for name in written(made))
    assert made.variant.num_bytes == made.explain().num_bytes == 4 * items


def test_a_checkpoint_may_change_every_tensor() -> None:
    """Whatever a checkpoint shares with the base is not known from its names."""
    assert written(make("ties", {"full": {"weight": 1}})) == set(BASE_STATE)


def test_layers_that_the_model_does_not_run_are_named() -> None:
    """Files with layers beyond the model's are merged without them, and not in silence."""
    beyond = {"model.layers.3.eh_proj.weight": torch.ones(2, 2)}
    resident = MemoryWeights({**BASE_STATE, **beyond}, "resident")
    full = MemoryWeights({**state_of(tiny_llama(3)), **beyond}, "full")
    one = Recipe.model_validate({"method": "ties", "sources": {"full": {"weight": 1}}})
    made = plan(one, {"full": full}, BASE, weights=resident)
    assert made.warnings == (
        "model.layers.3.eh_proj.weight are beyond the model's 3 layers: they are left out",
    )
    assert written(made) == set(BASE_STATE)
    assert not make("ties", {"full": {"weight": 1}}).warnings


def test_stacked_layers_of_the_base_take_no_memory() -> None:
    """Layers of the base in another order are all shared, and each says what it is built like."""
    slices = [part(("base", 0, 2)), part(("base", 1, 3)), part(("base", 1, 2))]
    made = make("passthrough", {"base": {}}, slices=slices)
    assert (made.path, made.reason) == (
        "variant",
        "its slices stack layers: those of the base are shared",
    )
    assert made.variant is not None
    assert (made.variant.tensors, made.variant.num_bytes) == ((), 0)
    assert made.variant.layers == (0, 1, 1, 2, 1)
    shared = made.variant.shared
    assert shared["model.layers.3.mlp.up_proj.weight"] == "model.layers.2.mlp.up_proj.weight"
    assert shared["lm_head.weight"] == "lm_head.weight"
    assert len(shared) == 3 + 5 * 9


def test_layers_of_an_adapter_in_a_stack_are_written_where_it_touches_them() -> None:
    """The adapter's layers are written, their norms and the base's layers are shared."""
    slices = [part(("base", 0, 2)), part(("attn", 1, 2))]
    made = make("passthrough", {"base": {}, "attn": {}}, slices=slices)
    kinds = {name.split("layers.2.")[1] for name in written(made)}
    assert kinds == {f"self_attn.{letter}_proj.weight" for letter in "qkvo"}


def test_a_tied_head_stays_tied() -> None:
    """A head that the files do not hold follows the embedding, and is not written."""
    tuned = MemoryWeights(perturbed(TIED_STATE, 1), "tuned")
    recipe = Recipe(method="ties", sources={"tuned": {"weight": 1}})
    made = plan(recipe, {"tuned": tuned}, TIED_BASE, weights=TIED_RESIDENT)
    assert written(made) == set(TIED_STATE)


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_an_adapter_on_a_tied_head_unties_it(method: str) -> None:
    """The head is written for itself, from the embedding, and the embedding keeps its look-ups."""
    tuned = MemoryWeights(perturbed(TIED_STATE, 1), "tuned")
    head = random_adapter(TIED_BASE, "sha256:1", 2, "lm_head")
    recipe = Recipe(method=method, sources={"tuned": {"weight": 1}, "head": {"weight": 1}})
    made = plan(recipe, {"tuned": tuned, "head": head}, TIED_BASE, weights=TIED_RESIDENT)
    assert made.variant is not None
    assert written(made) == {*TIED_STATE, "lm_head.weight"}
    merged = built(made.variant)
    state = with_adapter(TIED_STATE, head, TIED_BASE, tied=True)
    embedding = TIED_STATE["model.embed_tokens.weight"]
    own = [tuned.tensors["model.embed_tokens.weight"], state["lm_head.weight"]]
    if method == "linear":
        torch.testing.assert_close(merged["lm_head.weight"], sum(own) / 2)
    else:
        assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
        assert not torch.equal(merged["lm_head.weight"], embedding)


def test_two_names_of_one_content_are_two_models_of_a_variant() -> None:
    """A method that is no sum sees both, and the plan says so."""
    again = {**SOURCES, "again": SOURCES["attn"]}
    made = make("ties", {"attn": {"weight": 1}, "again": {"weight": 2}}, again)
    assert made.warnings == ("again and attn have the same content: they count as two models",)


some_weights = st.dictionaries(
    st.sampled_from(["attn", "proj", "full", "again"]), st.floats(0.1, 5), min_size=1
)


@given(some_weights, st.sampled_from(["ties", "dare_linear", "linear"]), st.randoms())
def test_names_and_order_do_not_matter(weights: dict[str, float], method: str, random: Any) -> None:
    """Equal digests mean equal weights, bit for bit, whatever the names and their order."""
    content = {**SOURCES, "again": SOURCES["attn"]}
    names = random.sample(sorted(weights), len(weights))
    renamed = {name: f"n{index}" for index, name in enumerate(names)}
    shared = {"parameters": {"density": 0.5}} if method != "linear" else {}
    one = make(method, {n: {"weight": w} for n, w in weights.items()}, content, **shared)
    other = make(
        method,
        {renamed[name]: {"weight": weights[name]} for name in names},
        {renamed[name]: content[name] for name in names},
        **shared,
    )
    assert one.digest == other.digest
    if one.variant is not None and other.variant is not None:
        pairs = zip(one.variant.tensors, other.variant.tensors, strict=True)
        for mine, theirs in pairs:
            assert mine.values == theirs.values
            own = [one.variant.sources[part.source].digest for part in mine.ingredients]
            assert own == [other.variant.sources[p.source].digest for p in theirs.ingredients]


def test_members_are_shares_and_weights_are_the_recipe_s() -> None:
    """Shares are lambda times weight, divided by the sum of weights where the method does so."""
    sources = {"attn": {"weight": [0.0, 1.0]}, "full": {"weight": 3}}
    made = make("ties", sources, parameters={"lambda": 2.0, "normalize": False})
    assert made.weights == {"attn": pytest.approx(0.5), "full": 3.0}
    assert made.members == {"attn": pytest.approx(1.0), "full": 6.0}
    made = make("ties", {"attn": {"weight": 1}, "full": {"weight": 3}})
    assert made.members == {"attn": 0.25, "full": 0.75}
    assert make("linear", {"full": {"weight": 1}, "base": {"weight": 3}}).members == {
        "full": 0.25,
        "base": 0.75,
    }
    assert make("slerp", {"full": {}}, parameters={"t": 0.5}).members == {}


def test_a_variant_is_explained_in_plain_json() -> None:
    """Each source's groups have what its parameters resolve to, over the tensors it touches."""
    density = [{"filter": "q_proj", "value": 0.2}, {"value": 1}]
    sources = {"attn": {"weight": 0.5, "density": density}, "full": {"weight": 1}}
    explanation = make("ties", sources, parameters={"lambda": 0.5}).explain()
    document = json.loads(json.dumps(dataclasses.asdict(explanation)))
    assert (document["path"], document["num_written"]) == ("variant", len(BASE_STATE))
    assert document["reason"] == "ties keeps or drops each element: weights are written"
    attn, full = document["sources"]
    assert (attn["kind"], full["kind"]) == ("adapter", "checkpoint")
    assert (attn["num_modules"], full["num_modules"]) == (12, len(BASE_STATE))
    assert attn["coefficient"] == pytest.approx(0.5 * 0.5 / 1.5)
    (group,) = [g for g in attn["groups"] if g["modules"] == ["self_attn.q_proj.weight"]]
    assert group["layers"] == [0, 2]
    assert group["values"] == {"weight": 0.5, "density": 0.2}
    (parameters,) = [g for g in document["parameters"] if g["layers"] is not None]
    assert parameters["values"]["lambda"] == 0.5


def test_slices_are_explained_by_the_layers_of_the_result() -> None:
    """A layer that is used twice is in two groups or one run, and they are counted."""
    slices = [part(("full", 0, 2)), part(("full", 1, 3))]
    explanation = make("passthrough", {"full": {}}, slices=slices).explain()
    assert explanation.num_layers == 4
    (source,) = explanation.sources
    assert [group.layers for group in source.groups] == [(0, 3), None]


def test_the_digest_of_slices_is_by_content() -> None:
    """Names do not reach the digest; layers, their order and their settings do."""

    def digest(first: str, second: str, *slices: Any) -> str:
        given = {first: SOURCES["attn"], second: SOURCES["full"]}
        return make("linear", {first: {"weight": 1}, second: {"weight": 2}}, given,
                    slices=list(slices)).digest  # fmt: skip

    one, two = part(("a", 0, 2), ("b", 1, 3)), part(("b", 0, 2))
    expected = digest("a", "b", one, two)
    turned = part(("x", 1, 3), ("a", 0, 2))
    assert digest("a", "x", turned, part(("x", 0, 2))) == expected
    assert digest("a", "b", two, one) != expected
    assert digest("a", "b", part(("a", 0, 2), ("b", 0, 2)), two) != expected
    assert digest("a", "b", one, part(("b", 0, 2), parameters={"weight": 1})) == expected
    assert digest("a", "b", one, part(("b", 0, 2), parameters={"normalize": False})) != expected


def test_one_slice_of_everything_is_no_slice() -> None:
    """It means the same, and so it has the same digest and takes the same path."""
    weight = {"attn": {"weight": 0.5}}
    whole = make("task_arithmetic", weight, slices=[part(("attn", 0, 3), ("base", 0, 3))])
    plain = make("task_arithmetic", weight)
    assert (whole.path, whole.digest) == ("blend", plain.digest)
    assert torch.equal(whole.blend.coefficients, plain.blend.coefficients)
