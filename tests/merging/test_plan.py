"""Plans: recipes compiled to coefficients, exact against dense merges, and refused with reasons."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.adapter import Adapter, read_adapter
from merging.blend import Blend
from merging.errors import PlanError
from merging.plan import Plan, base_plan, plan
from merging.recipe import Recipe
from tests.merging.tiny import base_of, flat_adapter, flat_base, save_peft, tiny_llama

BASE = flat_base(num_layers=3)
ADAPTERS = {
    "math": flat_adapter(BASE, "sha256:2", rank=2),
    "code": flat_adapter(BASE, "sha256:1", rank=3, contains="mlp"),
    "head": flat_adapter(BASE, "sha256:3", rank=1, contains="lm_head"),
}


def make(sources: dict[str, Any], method: str = "task_arithmetic", **fields: Any) -> Plan:
    recipe = Recipe.model_validate({"method": method, "sources": sources, **fields})
    return plan(recipe, ADAPTERS, BASE)


def reasons(
    sources: dict[str, Any], method: str = "task_arithmetic", **fields: Any
) -> tuple[str, ...]:
    with pytest.raises(PlanError) as error:
        make(sources, method, **fields)
    return error.value.reasons


def weights(**values: object) -> dict[str, Any]:
    return {name: {"weight": value} for name, value in values.items()}


def test_a_plan_of_adapters_is_a_blend() -> None:
    """Coefficients are float32 [num_adapters, num_modules], adapters sorted by digest."""
    made = make(weights(math=0.6, code=0.4))
    assert made.path == "blend"
    assert "no weights are written" in made.reason
    assert made.blend.adapters == (ADAPTERS["code"], ADAPTERS["math"])
    assert made.blend.coefficients.dtype == torch.float32
    assert torch.equal(made.blend.coefficients, torch.tensor([[0.4] * 7, [0.6] * 7]))


def test_density_is_accepted_without_effect_and_said() -> None:
    """Task arithmetic keeps deltas whole: a density changes nothing, and the plan warns of it."""
    plain = make(weights(math=0.6))
    dense = make({"math": {"weight": 0.6, "density": [{"filter": "mlp", "value": 0.3}]}})
    assert torch.equal(plain.blend.coefficients, dense.blend.coefficients)
    assert (plain.warnings, dense.warnings) == ((), ("density has no effect in task_arithmetic",))


def test_columns_follow_the_order_of_the_base() -> None:
    """A gradient's values stand in the columns of its layers."""
    (row,) = make(weights(math=[0.0, 1.0])).blend.coefficients
    assert row.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 0.0]


def test_coefficients_are_rounded_once() -> None:
    """Arithmetic is in float64, and the result is the float32 nearest to it."""
    made = make(weights(math=0.1), parameters={"lambda": 3.0})
    assert made.blend.coefficients[0, 0].item() == float(np.float32(0.1 * 3.0))


def test_members_are_means_over_the_modules_that_a_source_touches() -> None:
    """`code` touches mlp only, so what it would get elsewhere does not count."""
    setting = [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 9}]
    members = make({"code": {"weight": setting}, "math": {"weight": 0.3}}).members
    assert members == {"code": pytest.approx(0.5), "math": 0.3}


def test_the_base_is_a_member_of_linear() -> None:
    """The base takes its share, and has no row in the blend."""
    made = make(weights(base=3, math=1), "linear")
    assert made.members == {"base": 0.75, "math": 0.25}
    assert made.blend.adapters == (ADAPTERS["math"],)


def test_linear_of_the_base_alone_is_an_empty_blend() -> None:
    """A mean of nothing but the base adds nothing."""
    made = make(weights(base=2), "linear")
    assert made.blend.adapters == ()
    assert made.blend.coefficients.shape == (0, 7)


def test_a_source_of_no_weight_costs_nothing() -> None:
    """An adapter that comes to zero on all its modules is not in the blend."""
    setting = [{"filter": "mlp", "value": 0}, {"value": 1}]
    made = make({"code": {"weight": setting}, "math": {"weight": 1}})
    assert made.blend.adapters == (ADAPTERS["math"],)
    assert made.members["code"] == 0.0


def test_two_names_of_one_content_are_added() -> None:
    """Equal content is one adapter with the sum of the coefficients, and that is said."""
    adapters = {**ADAPTERS, "again": ADAPTERS["math"]}
    recipe = Recipe(method="task_arithmetic", sources=weights(math=0.25, again=0.5))
    made = plan(recipe, adapters, BASE)
    assert made.blend.adapters == (ADAPTERS["math"],)
    assert made.blend.coefficients[0].tolist() == [0.75] * 7
    assert made.members == {"again": 0.5, "math": 0.25}
    assert made.warnings == ("again and math have the same content: their coefficients are added",)


def test_a_sum_beyond_float32_is_refused() -> None:
    """Finite weights whose sum is no finite float32 are refused, and their sources are named."""
    adapters = {**ADAPTERS, "again": ADAPTERS["math"]}
    recipe = Recipe(method="task_arithmetic", sources=weights(math=3e38, again=3e38))
    with pytest.raises(PlanError, match="again and math have the same content, and the sum"):
        plan(recipe, adapters, BASE)


def test_a_coefficient_must_fit_float32() -> None:
    """Finite weights whose product is not are refused by source and module."""
    (reason,) = reasons(weights(math=1e30, code=1), parameters={"lambda": 1e30})
    assert reason.startswith("sources.math: its coefficient, 1e+60, is not a finite float32")
    assert "model.layers.0.self_attn.q_proj" in reason
    overflow = reasons(weights(math=1e200), parameters={"lambda": 1e200})
    assert "inf, is not a finite float32" in overflow[0]


def test_content_that_cancels_is_left_out() -> None:
    """The same adapter at 1 and -1 is nothing."""
    recipe = Recipe(method="task_arithmetic", sources=weights(math=1, again=-1))
    assert plan(recipe, {**ADAPTERS, "again": ADAPTERS["math"]}, BASE).blend.adapters == ()


def test_only_the_recipe_s_sources_are_used() -> None:
    """Other registered sources do not reach the plan."""
    assert set(make(weights(math=1)).adapters) == {"math"}


def test_unknown_sources_are_named_with_those_that_are_known() -> None:
    """A name that is not registered is a reason that lists the registered ones."""
    (reason,) = reasons(weights(maths=1))
    assert reason == "sources.maths: is not a registered source; registered are: code, head, math"


def test_sources_that_cannot_be_used_say_why() -> None:
    """A source that is registered without an adapter is a reason with its own, and is known."""
    recipe = Recipe(method="task_arithmetic", sources=weights(broken=1, maths=1))
    with pytest.raises(PlanError) as error:
        plan(recipe, {"math": ADAPTERS["math"]}, BASE, {"broken": "its folder is gone"})
    assert error.value.reasons == (
        "sources.broken: cannot be used: its folder is gone",
        "sources.maths: is not a registered source; registered are: broken, math",
    )


def test_weights_are_kept_beside_coefficients() -> None:
    """A plan has the mean of each source's own weights, whatever the method makes of them."""
    made = make(weights(math=[0.0, 1.0], code=3), parameters={"lambda": -2})
    assert made.weights == {"math": 0.5, "code": 3.0}
    assert made.members == {"math": -1.0, "code": -6.0}
    assert make(weights(base=3, math=1), "linear").weights == {"base": 3.0, "math": 1.0}


def test_a_plan_knows_how_long_it_took() -> None:
    """The seconds of planning are told, and those of the base are none."""
    assert 0 < make(weights(math=1)).explain().build_seconds < 10
    assert base_plan(BASE).explain().build_seconds == 0


def test_a_recipe_is_served_in_the_dtype_of_the_base() -> None:
    """Its own is what files are written in: the weights and so the digest are those without it, and
    that is told.
    """
    plain, same = make(weights(math=1)), make(weights(math=1), dtype="float32")
    other = make(weights(math=1), dtype="float16")
    assert plain.digest == same.digest == other.digest
    assert (plain.warnings, same.warnings) == ((), ())
    (warning,) = other.warnings
    assert warning.startswith(
        "dtype: merged in float32 and served in float32, as the base is; float16"
    )
    assert other.explain().warnings == other.warnings


def test_modules_that_the_base_lacks_are_refused() -> None:
    """An adapter for more layers does not get as far as a blend."""
    larger = flat_adapter(flat_base(num_layers=4), "sha256:9")
    recipe = Recipe(method="task_arithmetic", sources=weights(math=1))
    with pytest.raises(PlanError, match=r"sources\.math: .* model\.layers\.3\.self_attn\.q_proj"):
        plan(recipe, {"math": larger}, BASE)


def test_every_reason_comes_at_once() -> None:
    """Sources, vocabulary, base_model and values are all checked before anything is refused."""
    found = reasons(weights(maths=1, math=-1), "linear", tokenizer_source="x")
    starts = [reason.split(":")[0].split(" ")[0] for reason in found]
    assert starts == ["sources.maths", "tokenizer_source", "the"]
    found = reasons(weights(maths=1), base_model=None, tokenizer_source="x")
    starts = [reason.split(":")[0] for reason in found]
    assert starts == ["sources.maths", "base_model", "tokenizer_source"]


def test_the_digest_of_a_plan_is_its_recipe_s() -> None:
    """A blend is identified by the canonical recipe with its content."""
    recipe = Recipe(method="task_arithmetic", sources=weights(math=0.5))
    assert plan(recipe, ADAPTERS, BASE).blend.digest == recipe.digest({"math": "sha256:2"}, BASE)


def test_the_plan_of_the_base_is_empty() -> None:
    """The base alone is a blend of nothing, identified by its content and dtype."""
    made = base_plan(BASE)
    assert (made.path, made.blend.adapters, made.members) == ("base", (), {})
    assert made.blend.coefficients.shape == (0, 7)
    assert made.blend.digest == base_plan(flat_base(num_layers=3)).blend.digest
    for change in ({"digest": "sha256:0"}, {"dtype": "bfloat16"}):
        other = dataclasses.replace(BASE, **change)  # type: ignore[arg-type]
        assert base_plan(other).blend.digest != made.blend.digest
    assert base_plan(dataclasses.replace(BASE, name="x")).blend.digest == made.blend.digest


def test_an_explanation_is_plain_json() -> None:
    """Everything that explain says survives JSON, and adds up."""
    setting = [{"filter": "mlp", "value": 0.5}, {"filter": "nothing", "value": 1}, {"value": 1}]
    explanation = make({"math": {"weight": setting}, "code": {"weight": 2}}).explain()
    document = json.loads(json.dumps(dataclasses.asdict(explanation)))
    assert document["path"] == "blend"
    assert document["warnings"] == ["weight: filter 'nothing' matches no linear layer of the base"]
    assert document["num_bytes"] == ADAPTERS["math"].num_bytes + ADAPTERS["code"].num_bytes
    assert document["max_rank"] == 5
    code, math = document["sources"]
    assert (code["name"], code["kind"], code["digest"]) == ("code", "adapter", "sha256:1")
    assert (code["num_modules"], code["ranks"], code["coefficient"]) == (3, [3], 2.0)
    group = {"layers": [0, 2], "modules": ["mlp.up_proj"], "coefficient": 2.0, "values": {}}
    assert code["groups"] == [group]
    assert [group["coefficient"] for group in math["groups"]] == [1.0, 0.5]
    assert math["coefficient"] == 0.75


def test_the_base_is_explained_as_a_source() -> None:
    """A base in the mean is shown with its share of every linear layer."""
    base, _ = make(weights(base=1, math=1), "linear").explain().sources
    assert (base.name, base.kind, base.digest, base.num_bytes) == ("base", "base", BASE.digest, 0)
    assert base.num_modules == 7
    assert base.groups[-1].modules == ("lm_head",)


def test_the_plan_of_the_base_is_explained() -> None:
    """There is nothing to add up."""
    explanation = base_plan(BASE).explain()
    assert (explanation.path, explanation.sources, explanation.max_rank) == ("base", (), 0)


def dense(model: Any, blend: Blend) -> Any:
    """The model with a blend written into its weights."""
    merged = copy.deepcopy(model)
    for index, name in enumerate(base_of(model).linears):
        for adapter, coefficient in zip(blend.adapters, blend.coefficients[:, index], strict=True):
            if name in adapter.factors:
                factor = adapter.factors[name]
                module = merged.get_submodule(name)
                module.weight.data += coefficient * factor.scale * factor.b @ factor.a
    return merged


@pytest.fixture(scope="module")
def peft_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    """Two adapters that PEFT made, of unequal rank, alpha and modules."""
    folder = tmp_path_factory.mktemp("adapters")
    save_peft(tiny_llama(), folder / "a", r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"])
    save_peft(tiny_llama(), folder / "b", r=6, use_rslora=True, target_modules=["q_proj", "o_proj"])
    return {name: read_adapter(folder / name) for name in ("a", "b")}


def test_a_blend_is_the_merge_of_dense_models(peft_adapters: dict[str, Adapter]) -> None:
    """`linear` over adapters is the weighted mean of the merged models' weights."""
    model = tiny_llama()
    base = base_of(model)
    alone = {
        name: dense(
            model,
            plan(Recipe(method="linear", sources=weights(**{name: 1})), peft_adapters, base).blend,
        )
        for name in peft_adapters
    }
    recipe = Recipe(method="linear", sources=weights(a=1, b=2, base=1))
    merged = dense(model, plan(recipe, peft_adapters, base).blend)
    shares = {"a": 0.25, "b": 0.5}
    for name, weight in merged.named_parameters():
        parts = [share * alone[key].get_parameter(name) for key, share in shares.items()]
        expected = 0.25 * model.get_parameter(name) + sum(parts)
        torch.testing.assert_close(weight.data, expected.data, rtol=1e-5, atol=1e-6)


def test_negation_undoes(peft_adapters: dict[str, Adapter]) -> None:
    """An adapter at 1 and its blend at -1 give the base back."""
    model = tiny_llama()
    base = base_of(model)
    plans = [
        plan(Recipe(method="task_arithmetic", sources=weights(a=w)), peft_adapters, base)
        for w in (1, -1)
    ]
    restored = dense(dense(model, plans[0].blend), plans[1].blend)
    for name, weight in restored.named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name))


def test_real_digests_do_not_depend_on_paths(
    tmp_path: Path, peft_adapters: dict[str, Adapter]
) -> None:
    """The same adapter from another folder gives the same blend."""
    save_peft(tiny_llama(), tmp_path, r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"])
    base = base_of(tiny_llama())
    recipe = Recipe(method="task_arithmetic", sources=weights(a=0.5))
    again = plan(recipe, {"a": read_adapter(tmp_path)}, base)
    assert again.blend.digest == plan(recipe, peft_adapters, base).blend.digest


some_weights = st.dictionaries(
    st.sampled_from(["math", "code", "head", "again"]), st.floats(0.1, 5), min_size=1
)


@given(some_weights, st.sampled_from(["linear", "task_arithmetic"]), st.randoms())
def test_names_and_order_do_not_matter(values: dict[str, float], method: str, random: Any) -> None:
    """Equal digests mean equal coefficients, bit for bit, whatever the names and their order."""
    content = {**ADAPTERS, "again": ADAPTERS["math"]}
    names = random.sample(sorted(values), len(values))
    renamed = {name: f"n{index}" for index, name in enumerate(names)}
    one = plan(Recipe(method=method, sources=weights(**values)), content, BASE)
    other = plan(
        Recipe(method=method, sources=weights(**{renamed[n]: values[n] for n in names})),
        {renamed[name]: content[name] for name in names},
        BASE,
    )
    assert one.blend.digest == other.blend.digest
    assert one.blend.adapters == other.blend.adapters
    assert torch.equal(one.blend.coefficients, other.blend.coefficients)
    assert {renamed[name]: member for name, member in one.members.items()} == other.members
