"""Low-rank methods: one adapter is made of those of a recipe, and that is the whole merge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.adapter import Adapter, LowRank
from merging.adapter_export import stack_blend
from merging.base import Base, Linear
from merging.core_bases import CoreBases
from merging.dense import dense_weight
from merging.errors import PlanError
from merging.methods import METHODS
from merging.methods.core_basis import Bases, new_basis
from merging.methods.core_space import core_space
from merging.methods.method import Method, method
from merging.plan import Plan, plan
from merging.recipe import Recipe
from tests.merging.methods.one_tensor import values_of
from tests.merging.plans import MemoryWeights

OUT, IN = 6, 5
MODULES = [f"model.layers.{i}.{kind}" for i in range(2) for kind in ("attn", "mlp")]
BASE = Base("flat", "sha256:f", "float32", 2, {name: Linear(OUT, IN) for name in MODULES})


def adapter(seed: int, rank: int, modules: Sequence[str] = MODULES, size: float = 1.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for module in modules:
        a = torch.randn(rank, IN, generator=generator)
        b = torch.randn(OUT, rank, generator=generator)
        factors[module] = LowRank(a, size * b, 0.5)
    return Adapter(f"sha256:{seed}", factors, None, None, Path("flat"), 8)


ADAPTERS: Mapping[str, Adapter] = {
    "math": adapter(1, 2),
    "code": adapter(2, 3, MODULES[1::2]),
    "huge": adapter(3, 1, size=1e30),
    "empty": adapter(4, 2, size=0.0),
}


def make(
    sources: Mapping[str, Any], name: str = "core_space", bases: Bases = new_basis, **fields: Any
) -> Plan:
    recipe = Recipe.model_validate({"method": name, "sources": sources, **fields})
    return plan(recipe, {**ADAPTERS, "full": MemoryWeights({})}, BASE, bases=bases)


def reasons(sources: Mapping[str, Any], **fields: Any) -> str:
    with pytest.raises(PlanError) as error:
        make(sources, **fields)
    return "; ".join(error.value.reasons)


def delta(made: Plan, module: str) -> torch.Tensor:
    return dense_weight(made.blend, BASE, module, torch.zeros(OUT, IN))


BOTH = {"math": {"weight": 0.7, "density": 0.5}, "code": {"weight": 0.4, "density": [0.4, 0.8]}}


@pytest.mark.parametrize("inside", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_the_blend_is_what_the_method_makes_of_each_module(inside: str) -> None:
    """Every module has the factors of `merge_factors` for the adapters that touch it, with the
    values, the seed and the names that they have there; the base stays as it is.
    """
    made = make(BOTH, parameters={"inside": inside, "lambda": 0.8}, seed=3)
    assert (made.path, made.blend.base_scales, made.variant) == ("blend", None, None)
    assert len(made.blend.adapters) == 1
    for layer, module in ((0, MODULES[0]), (0, MODULES[1]), (1, MODULES[3])):
        used = [name for name in BOTH if module in ADAPTERS[name].factors]
        weight = tuple({"math": 0.7, "code": 0.4}[name] for name in used)
        density = tuple({"math": 0.5, "code": (0.4, 0.8)[layer]}[name] for name in used)
        given = {"weight": weight, "density": density, "inside": inside, "lambda_": 0.8}
        alone = core_space.merge_factors(
            [ADAPTERS[name].factors[module] for name in used],
            values_of(core_space, len(used), **given),
            seed=3,
            digests=[ADAPTERS[name].digest for name in used],
            tensor_name=f"{module}.weight",
        )
        assert torch.equal(delta(made, module), alone.b @ alone.a)
        assert delta(made, module).any()


@pytest.mark.parametrize("inside", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_other_weights_find_no_basis_again(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan keeps for the next one is all that takes an SVD, and gives the very same bits,
    also where another order of the sources is the same recipe.
    """
    bases, calls, svd = CoreBases(), list[int](), torch.linalg.svd

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(1)
        return svd(*given, **options)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    parameters = {"inside": inside}
    make(BOTH, parameters=parameters, bases=bases)
    assert len(calls) == 2 * len(MODULES)
    other = {"code": {"weight": 0.9, "density": 0.6}, "math": {"weight": -0.2}}
    kept = make(other, parameters=parameters, bases=bases)
    assert len(calls) == 2 * len(MODULES)
    new = make(other, parameters=parameters)
    assert len(calls) == 4 * len(MODULES)
    for module in MODULES:
        assert torch.equal(delta(kept, module), delta(new, module))
    make({"math": {"weight": 0.3}}, parameters=parameters, bases=bases)
    assert len(calls) == 5 * len(MODULES)  # another space in the half that code is in, too


def test_with_task_arithmetic_inside_it_is_that_blend() -> None:
    """Whatever modules the adapters touch."""
    core = make(BOTH, parameters={"inside": "task_arithmetic", "lambda": 0.8})
    same = make(BOTH, "task_arithmetic", parameters={"lambda": 0.8})
    for module in MODULES:
        torch.testing.assert_close(delta(core, module), delta(same, module), rtol=1e-5, atol=1e-6)


def test_it_is_exported_as_one_adapter() -> None:
    """The stacked blend is the adapter that was made, of at most the sum of the ranks."""
    made = make(BOTH)
    exported = stack_blend(made.blend, BASE)
    assert {m: f.rank for m, f in exported.factors.items()} == dict(
        zip(MODULES, (2, 5, 2, 5), strict=True)
    )
    for module, factor in exported.factors.items():
        assert torch.equal(factor.b @ factor.a, delta(made, module))


def test_names_and_order_of_the_sources_do_not_matter() -> None:
    """The same contents and settings are the same digest, the same adapter and the same bits; other
    settings are others.
    """
    one = make(BOTH, parameters={"inside": "dare_ties"})
    other = make(dict(reversed(BOTH.items())), parameters={"inside": "dare_ties"})
    changed = make({**BOTH, "code": {"weight": 0.41}}, parameters={"inside": "dare_ties"})
    assert one.digest == other.digest != changed.digest
    digests = [made.blend.adapters[0].digest for made in (one, other, changed)]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] not in (one.digest, *(a.digest for a in ADAPTERS.values()))
    assert all(torch.equal(delta(one, m), delta(other, m)) for m in MODULES)
    assert not torch.equal(delta(one, MODULES[1]), delta(changed, MODULES[1]))


def test_it_is_explained() -> None:
    """Sources have their shares and what their settings resolve to on the modules that they touch,
    the recipe's own parameters are there, and bytes and rank are those of the adapter made.
    """
    made = make(BOTH, parameters={"lambda": 0.5})
    shown = made.explain()
    assert "makes one adapter of its sources" in shown.reason
    assert shown.num_bytes == made.own_bytes == made.blend.adapters[0].num_bytes > 0
    assert shown.max_rank == 5
    code, math = shown.sources
    assert (code.name, code.num_modules, code.weight, code.coefficient) == ("code", 2, 0.4, 0.2)
    assert [(g.layers, g.modules, dict(g.values)["density"]) for g in code.groups] == [
        ((0, 0), ("mlp",), 0.4),
        ((1, 1), ("mlp",), 0.8),
    ]
    assert (math.num_modules, math.kind, math.ranks) == (4, "adapter", (2,))
    assert [dict(g.values)["inside"] for g in shown.parameters] == ["ties"]


def test_sources_without_any_effect_are_the_base() -> None:
    """Adapters of zeros, or of no weight, make no adapter."""
    made = make({"empty": {"weight": 1.0}, "math": {"weight": 0.0}})
    assert made.blend.adapters == ()
    assert made.blend.coefficients.shape == (0, len(MODULES))
    assert made.explain().max_rank == 0


def test_equal_sources_count_as_two() -> None:
    """And that is said: their deltas are merged, not added before."""
    twin = {**ADAPTERS, "again": ADAPTERS["math"]}
    recipe = Recipe(method="core_space", sources={n: {"weight": 0.5} for n in ("math", "again")})
    made = plan(recipe, twin, BASE)
    assert made.warnings == ("again and math have the same content: they count as two models",)
    whole = 0.5 * ADAPTERS["math"].factors[MODULES[0]].b @ ADAPTERS["math"].factors[MODULES[0]].a
    torch.testing.assert_close(delta(made, MODULES[0]), whole, rtol=1e-5, atol=1e-6)


def test_what_has_no_factors_is_refused_by_name() -> None:
    """Full checkpoints, a base_model that is a source, and stacked layers, all at once."""
    names = ("math", "full", "code")
    layers = [{"model": name, "layer_range": [1, 2]} for name in names]
    slices = [{"base_model": "code", "sources": layers}]
    sources = {"math": {"weight": 1}, "full": {"weight": 1}, "code": {}}
    told = reasons(sources, slices=slices)
    for part in ("full has none", "and not to code", "stacks no layers"):
        assert part in told


def test_factors_that_overflow_are_refused_by_module() -> None:
    """Nothing that is not finite is served."""
    told = reasons({"huge": {"weight": 1e30}}, parameters={"inside": "task_arithmetic"})
    assert "not finite in float32; lower the weights" in told
    assert MODULES[0] in told


def mean_of_factors() -> Method:
    @method("first", title="First", paper="https://example.org", kind="low_rank")
    def first(
        factors: Sequence[LowRank], seed: int, digests: Sequence[str], tensor_name: str
    ) -> LowRank:
        """The adapter of the lowest digest alone, half of it."""
        chosen = factors[list(digests).index(min(digests))]
        return LowRank(chosen.a, chosen.b, chosen.scale / 2)

    return first


def test_a_method_of_another_package_may_be_of_this_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs nothing but its function; its own scale is kept."""
    monkeypatch.setitem(METHODS, "first", mean_of_factors())  # type: ignore[arg-type]
    made = make({"math": {}, "code": {}}, "first")
    factor = ADAPTERS["math"].factors[MODULES[1]]
    assert torch.equal(delta(made, MODULES[1]), 0.25 * factor.b @ factor.a)
    assert made.members == {}


def test_factors_of_another_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of another package may be wrong: the module is named, and nothing is served."""
    turned = replace(
        mean_of_factors(), function=lambda factors, **_: LowRank(factors[0].b.T, factors[0].a.T, 1)
    )
    monkeypatch.setitem(METHODS, "first", turned)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=rf"first made factors of \[{IN}, {OUT}\].*{MODULES[0]}"):
        make({"math": {}}, "first")
