"""Building variants: equal to the plain reference, whatever the pieces, threads and cache."""

import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merging.adapter import Adapter, LowRank
from merging.adapter_weights import AdapterWeights, StackedWeights
from merging.aligned_weights import AlignedWeights
from merging.base import Base, Linear
from merging.build import GROUP, BuildCancelled, build, grouped_by_size
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.elementwise import merge_whole
from merging.errors import PlanError, SourceError
from merging.methods import METHODS
from merging.operand import Operands, check_unchanged
from merging.pieces import pieces_of
from merging.source import AdapterDeltas, CheckpointDeltas, Weights
from merging.trim_cache import TrimCache
from tests.merging.plans import MemoryWeights, built, plan_of, random_tensors, whole

SHAPES: Mapping[str, tuple[int, ...]] = {
    "wide.weight": (3, 2_101),  # rows of more than a piece, and not of whole bytes of a mask
    "tall.weight": (130, 57),  # rows of less than a piece
    "cube": (3, 4, 521),
    "vector": (4_000,),
    "short": (7,),
    "single": (1, 1),
    "scalar": (),
    "empty": (0, 3),
}
SIZE = 2_000
"""Elements of a piece here, in most tests, so that small tensors have several."""

OWN: Mapping[str, tuple[float, ...]] = {
    "weight": (0.6, 0.5, -0.2),
    "density": (0.5, 0.4, 0.7),
    "gamma": (0.1, 0.05, 0.0),
    "epsilon": (0.1, 0.2, 0.05),
}
"""Values for each of three sources, so that every trim and every sign is at work."""

VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "ties": [{"scope": "model"}, {"semantics": "paper", "rescale": True}, {"semantics": "peft"}],
    "breadcrumbs": [{"scope": "model"}],
    "dare_ties": [{"semantics": "peft"}],
    "sce": [{"select_topk": 0.4}],
    "nuslerp": [
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    "model_stock": [{"filter_wise": True}],
    "linear": [{"normalize": False}],
}
"""Other values than the defaults, by method."""

TENSOR_METHODS = [m for m in METHODS.values() if m.kind != "low_rank"]
CASES = [
    pytest.param(method.name, extra, id=f"{method.name}-{number}")
    for method in TENSOR_METHODS
    for number, extra in enumerate([{}, *VARIANTS.get(method.name, [])])
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merging.operand.pieces_of", partial(pieces_of, size=SIZE))
    monkeypatch.setattr("merging.tensor_build.GROUP", 2)


def values(method: str, count: int) -> dict[str, Any]:
    """What `OWN` has for a method's parameters."""
    names = [p.name for p in METHODS[method].parameters if p.scope == "source"]
    return {name: OWN[name][:count] for name in names if name in OWN}


def example(method: str, dtype: str = "float32", **extra: Any) -> Any:
    """A plan of a base and as many sources as the method takes, up to three, in bfloat16."""
    own = METHODS[method]
    count = min(2 if method in ("nuslerp", "multislerp") else 3, own.max_sources or 3)
    base = random_tensors(SHAPES, seed=1)
    sources = {f"s{i}": random_tensors(SHAPES, seed=2 + i, near=base) for i in range(count)}
    return plan_of(method, base, sources, dtype, **{**values(method, count), **extra})


@pytest.mark.parametrize(("method", "extra"), CASES)
def test_a_build_equals_the_plain_reference(method: str, extra: dict[str, Any]) -> None:
    """Of every method and shape. Elementwise methods are equal bit for bit; linear and geometric
    ones sum in another order, and differ by float32 rounding of the largest term.
    """
    plan = example(method, **extra)
    merged, report = built(plan, num_workers=2)
    expected = whole(plan)
    for name, tensor in expected.items():
        if plan.method.kind == "elementwise":
            torch.testing.assert_close(merged[name], tensor, rtol=0, atol=0)
        else:
            torch.testing.assert_close(merged[name], tensor, rtol=2e-6, atol=4e-6)
    assert report.num_bytes == plan.num_bytes == sum(t.nbytes for t in merged.values())


@pytest.mark.parametrize(("method", "extra"), CASES)
def test_threads_and_cache_change_no_bit(method: str, extra: dict[str, Any]) -> None:
    """One worker or three, a cold cache or a warm one, or none: the same bytes."""
    plan, cache = example(method, "bfloat16", **extra), TrimCache(1 << 20)
    first, _ = built(plan, num_workers=1)
    for options in ({"num_workers": 3}, {"cache": cache}, {"cache": cache, "num_workers": 3}):
        again, _ = built(plan, **options)
        for name, tensor in first.items():
            assert tensor.view(torch.int16).equal(again[name].view(torch.int16)), (name, options)


@pytest.mark.parametrize("method", [m.name for m in TENSOR_METHODS if (m.max_sources or 2) > 1])
def test_the_order_of_ingredients_changes_no_bit(method: str) -> None:
    """Sources are summed in the order of their content, whatever the recipe's order and names."""
    count = 2 if method in ("nuslerp", "multislerp") else 3
    base = random_tensors(SHAPES, seed=1)
    tensors = [random_tensors(SHAPES, seed=2 + i, near=base) for i in range(count)]
    own = values(method, count)
    backwards = {name: value[::-1] for name, value in own.items()}
    one = plan_of(method, base, {f"s{i}": t for i, t in enumerate(tensors)}, **own)
    other = plan_of(method, base, {f"r{i}": t for i, t in enumerate(tensors[::-1])}, **backwards)
    first, second = built(one)[0], built(other)[0]
    assert all(tensor.equal(second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp", "sce"])
def test_the_result_is_rounded_once(method: str) -> None:
    """To bfloat16 from float32, and to float16."""
    exact, _ = built(example(method))
    for dtype in ("bfloat16", "float16"):
        rounded, _ = built(example(method, dtype))
        for name, tensor in exact.items():
            assert rounded[name].equal(tensor.to(getattr(torch, dtype)))


@pytest.mark.parametrize("method", ["task_arithmetic", "multislerp"])
def test_large_coefficients_keep_small_deltas(method: str) -> None:
    """A coefficient of millions on a delta near zero is not lost in the rounding of W0: weights may
    be large, and Multi-SLERP divides by the length of a delta, which may be zero.
    """
    base = {"w": torch.linspace(1, 2, 1000)}
    one, same = {"w": base["w"] + 1e-7}, {"w": base["w"].clone()}
    weight = (1e6, -2e5) if method == "task_arithmetic" else (0.6, 0.4)
    plan = plan_of(method, base, {"one": one, "same": same}, weight=weight)
    torch.testing.assert_close(built(plan)[0]["w"], whole(plan)["w"], rtol=1e-6, atol=1e-6)


def adapter(base: Base, seed: int, *modules: str) -> AdapterDeltas:
    """An adapter of rank 3 on some modules."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for module in modules:
        linear = base.linears[module]
        a = torch.randn(3, linear.in_features, generator=generator)
        b = 0.05 * torch.randn(linear.out_features, 3, generator=generator)
        factors[module] = LowRank(a.bfloat16(), b.bfloat16(), 0.5 + seed)
    return AdapterDeltas(Adapter(f"adapter {seed}", factors, None, None, Path("x"), 0), base)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "model_stock", "multislerp", "sce"])
def test_adapters_and_checkpoints_mix(method: str, transposed: bool) -> None:
    """Low-rank deltas in a build equal dense ones, also where weights are kept [in, out]."""
    shapes = {"a.weight": (300, 257), "b.weight": (20, 30), "norm.weight": (30,)}
    linears = {
        name.removesuffix(".weight"): Linear(*(shape[::-1] if transposed else shape), transposed)
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    base = Base("base", "sha256:0", "float32", 1, linears)
    tensors = random_tensors(shapes, seed=1)
    sources = {
        "both": adapter(base, 1, "a", "b"),
        "one": adapter(base, 2, "a"),
        "full": random_tensors(shapes, seed=3, near=tensors),
    }
    plan = plan_of(method, tensors, sources, **values(method, 3))
    merged, _ = built(plan, num_workers=2)
    for name, tensor in whole(plan).items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_large_tensor_is_shared_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 4 Mi elements the steps of one tensor run side by side, in pieces of the true size, and
    its result is the same.
    """
    monkeypatch.undo()
    base = random_tensors({"large.weight": (2049, 2048)}, seed=1)
    near = [random_tensors({"large.weight": (2049, 2048)}, seed=s, near=base) for s in (2, 3)]
    for method in ("task_arithmetic", "ties", "slerp"):
        sources = dict(zip("ab", near[: METHODS[method].max_sources or 2], strict=False))
        plan = plan_of(method, base, sources, **values(method, len(sources)))
        merged, _ = built(plan, num_workers=2)
        expected = whole(plan)["large.weight"]
        torch.testing.assert_close(merged["large.weight"], expected, rtol=2e-6, atol=4e-6)


def test_large_tensors_that_are_seen_whole_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each needs memory for all of it: small ones are merged beside them, other large ones not."""
    monkeypatch.setattr("merging.build.LARGE", 1_000)
    monkeypatch.setattr("merging.build.GROUP", 1)
    small_begun = threading.Event()
    num_large, most_large = 0, 0
    original = merge_whole

    def noted(method: Any, operands: Operands, *rest: Any) -> bool:
        nonlocal num_large, most_large
        if math.prod(operands.plan.shape) < 1_000:
            small_begun.set()
            return original(method, operands, *rest)
        num_large += 1
        most_large = max(most_large, num_large)
        assert small_begun.wait(10)
        merged = original(method, operands, *rest)
        num_large -= 1
        return merged

    monkeypatch.setattr("merging.tensor_build.merge_whole", noted)
    shapes = {f"large{i}": (20, 50) for i in range(3)} | {f"small{i}": (5,) for i in range(6)}
    base = random_tensors(shapes, seed=1)
    sources = {"a": random_tensors(shapes, seed=2), "b": random_tensors(shapes, seed=3)}
    plan = plan_of("sce", base, sources)
    merged, _ = built(plan, num_workers=3)
    assert most_large == 1
    for name, tensor in whole(plan).items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=0)


def test_an_edit_of_weights_finds_no_trim_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trims of TIES depend on density, and not on weights: with a cache they are found once."""
    calls = []
    trim = METHODS["ties"].trim
    assert trim is not None
    original = type(trim).__call__
    monkeypatch.setattr(
        type(trim), "__call__", lambda self, *a, **k: calls.append(1) or original(self, *a, **k)
    )
    cache, num_tensors = TrimCache(1 << 20), len(SHAPES) - 1  # one of them has no elements
    built(example("ties"), cache=cache)
    assert len(calls) == 3 * num_tensors
    edited = example("ties", weight=(0.1, 0.2, 0.3))
    merged, _ = built(edited, cache=cache)
    assert len(calls) == 3 * num_tensors
    for name, tensor in whole(edited).items():
        assert tensor.equal(merged[name])
    calls.clear()
    built(example("ties", density=(0.1, 0.4, 0.7)), cache=cache)
    assert len(calls) == num_tensors  # of the one source whose density changed


def test_it_writes_into_views() -> None:
    """A target that is not contiguous, such as a part of a joined weight, gets the same values."""
    plan = example("task_arithmetic")
    expected, _ = built(plan)
    out = {t.name: torch.zeros(*t.shape, 2)[..., 1] for t in plan.tensors}
    build(plan, out.__getitem__)
    assert all(tensor.equal(out[name]) for name, tensor in expected.items())


def test_it_reports_how_much_changed() -> None:
    """||merged - W0|| / ||W0|| of each tensor, and None where W0 is zero."""
    base = {"w": torch.full((4, 4), 2.0), "zero": torch.zeros(3)}
    source = {"w": torch.full((4, 4), 3.0), "zero": torch.ones(3)}
    _, report = built(plan_of("task_arithmetic", base, {"s": source}, weight=(0.5,)))
    assert report.changes["w"] == pytest.approx(0.25)
    assert report.changes["zero"] is None
    assert report.seconds > 0
    assert set(report.phase_seconds) == {"merge"}


def test_progress_rises_to_the_number_of_bytes() -> None:
    """It is told bytes written and bytes in all, and ends with all of them."""
    heard: list[tuple[int, int]] = []
    plan = example("linear")
    built(plan, progress=lambda done, total: heard.append((done, total)))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[0] == (0, plan.num_bytes)
    assert heard[-1] == (plan.num_bytes, plan.num_bytes)


def test_a_cancelled_build_stops() -> None:
    """`cancelled` is asked between groups of pieces."""
    asked = []
    with pytest.raises(BuildCancelled):
        built(example("ties"), cancelled=lambda: len(asked) >= 3 or asked.append(1) is not None)
    assert len(asked) == 3


@pytest.mark.parametrize(("method", "extra"), CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_source_that_is_not_finite_is_named(
    method: str, extra: dict[str, Any], value: float
) -> None:
    """By every method, also one that would leave the element out, with tensor, source and count."""
    own = METHODS[method]
    count = max(own.min_sources, 1)
    base = random_tensors({"fine": (4, 6), "broken": (4, 6)}, seed=1)
    tensors = [
        random_tensors({"fine": (4, 6), "broken": (4, 6)}, 2 + i, base) for i in range(count)
    ]
    tensors[0]["broken"][1, 2] = value
    sources = {f"s{i}": t for i, t in enumerate(tensors)}
    plan = plan_of(method, base, sources, **{**values(method, count), **extra})
    with pytest.raises(PlanError) as error:
        built(plan)
    assert error.value.reasons == ("broken: has 1 values of 24 in source 's0' that are not finite",)


def test_a_result_beyond_the_dtype_is_refused() -> None:
    """Finite sources can have a sum that float16 cannot hold."""
    base = {"w": torch.full((4,), 60000.0), "v": torch.ones(4)}
    source = {"w": torch.full((4,), 65000.0), "v": torch.ones(4)}
    plan = plan_of("task_arithmetic", base, {"s": source}, "float16", weight=(2.0,))
    with pytest.raises(PlanError, match="w: its merged values are not finite in float16"):
        built(plan)


def test_huge_values_that_fit_are_built() -> None:
    """Squares that overflow float32 are no reason to refuse."""
    base = {"w": torch.full((4,), 1e30)}
    merged, _ = built(plan_of("task_arithmetic", base, {"s": {"w": torch.full((4,), 2e30)}}))
    assert merged["w"].tolist() == pytest.approx([2e30] * 4)


def test_all_reasons_come_at_once() -> None:
    """Missing tensors, other shapes and values that are not finite, led by the tensors' names."""
    shapes = {"a": (3,), "b": (3,), "c": (2, 3), "d": (3,)}
    base = random_tensors(shapes, seed=1)
    other = random_tensors(shapes, seed=2, near=base)
    del other["a"]
    other["c"] = torch.ones(3, 2)
    other["d"][0] = torch.inf
    with pytest.raises(PlanError) as error:
        built(plan_of("ties", base, {"s": other}))
    assert error.value.reasons == (
        "a: source 's' has no tensor named a",
        "c: c is [3, 2] in source 's', and [2, 3] is needed",
        "d: has 1 values of 3 in source 's' that are not finite",
    )


def test_a_method_that_refuses_a_tensor_is_heard() -> None:
    """Sources whose directions cancel have no mean; and so in the middle of a task."""
    base = {"w": torch.zeros(4), "v": torch.zeros(4), "fine": torch.ones(4)}
    angles = [2 * math.pi * i / 3 for i in range(3)]
    apart = [
        {"w": torch.tensor([math.cos(x), math.sin(x), 0, 0], dtype=torch.float64)} for x in angles
    ]
    apart = [{"v": torch.zeros(4), "fine": torch.ones(4), **tensors} for tensors in apart]
    plan = plan_of("multislerp", base, {f"s{i}": t for i, t in enumerate(apart)}, weight=(1, 1, 1))
    with pytest.raises(PlanError, match=r"^w: the directions of the sources cancel"):
        built(plan)

    def refuse(*args: Any, **values: Any) -> torch.Tensor:
        raise PlanError("no such thing")

    plan = plan_of("ties", base, {"s": apart[0]})
    plan = replace(plan, method=replace(plan.method, function=refuse))
    with pytest.raises(PlanError, match=r"^w, v, fine: no such thing$"):
        built(plan)


def test_whole_numbers_must_be_the_same_in_all() -> None:
    """Buffers of integers are copied if they are equal, and refused by name if not."""
    base = {"ids": torch.arange(5)}
    plan = plan_of("ties", base, {"s": {"ids": torch.arange(5)}})
    out = {"ids": torch.zeros(5, dtype=torch.int64)}
    build(plan, out.__getitem__)
    assert out["ids"].tolist() == [0, 1, 2, 3, 4]
    plan = plan_of("ties", base, {"s": {"ids": torch.arange(5) + 1}})
    with pytest.raises(PlanError, match="ids: is of int64, which cannot be merged"):
        build(plan, out.__getitem__)


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("bfloat16", "float64")])
def test_sources_of_other_dtypes_are_read_as_float32(dtypes: tuple[str, str]) -> None:
    """The base and each source keep their own dtype on disk."""
    own = [getattr(torch, dtype) for dtype in dtypes]
    base = random_tensors({"w": (4, 6)}, seed=1, dtype=own[0])
    plan = plan_of("ties", base, {"s": random_tensors({"w": (4, 6)}, 2, base, own[1])})
    torch.testing.assert_close(built(plan)[0]["w"], whole(plan)["w"], rtol=0, atol=0)


def test_torch_keeps_its_threads() -> None:
    """A build sets nothing of the process: other threads keep torch's number of threads."""
    before = torch.get_num_threads()
    built(example("ties"), num_workers=2)
    assert torch.get_num_threads() == before


def test_a_file_that_changes_during_the_build_is_named(tmp_path: Path) -> None:
    """Also after the last tensor was opened: what was built may be half of one, half of another."""
    shapes = {"w": (4, 6), "v": (5,)}
    tensors = {name: random_tensors(shapes, seed=seed) for seed, name in enumerate(("base", "a"))}
    for name, content in tensors.items():
        (tmp_path / name).mkdir()
        save_file(dict(content), tmp_path / name / "model.safetensors")
    plan = plan_of("task_arithmetic", tensors["base"], {"a": tensors["a"]}, weight=(1.0,))
    source = CheckpointDeltas(open_checkpoint(tmp_path / "a"))
    plan = replace(plan, base=open_checkpoint(tmp_path / "base"), sources={"a": source})
    out = {tensor.name: torch.zeros(tensor.shape) for tensor in plan.tensors}

    def change_at_the_end(done: int, total: int) -> None:
        if done == total:
            os.utime(tmp_path / "a" / "model.safetensors", ns=(1, 1))

    build(plan, out.__getitem__)
    with pytest.raises(SourceError, match=r"a/model\.safetensors changed") as error:
        build(plan, out.__getitem__, progress=change_at_the_end)
    assert len(error.value.reasons) == 1


def test_a_file_that_is_cut_off_is_not_read_any_more(tmp_path: Path) -> None:
    """Each piece is read after a look at its file, whatever model the file is a part of: reading on
    behind its end would end the process. (Here it loses so little that no page goes.)
    """
    shapes = {"w": (6 * SIZE,)}  # three tasks of two pieces
    tensors = {name: random_tensors(shapes, seed=seed) for seed, name in enumerate(("base", "a"))}
    nothing = Adapter("sha256:0", {}, None, None, tmp_path, 0)
    other, memory = Base("b", "sha256:b", "float32", 1, {}), MemoryWeights(tensors["base"])
    path = tmp_path / "model.safetensors"
    wraps: list[Callable[[CheckpointWeights], Weights]] = [
        lambda opened: opened,
        lambda opened: AlignedWeights(opened, memory, frozenset()),
        lambda opened: AdapterWeights(nothing, other, opened, {}),
        lambda opened: StackedWeights({"w": (opened, "w")}),
    ]
    for wrap in wraps:
        save_file(tensors["a"], path)
        model = wrap(open_checkpoint(tmp_path))
        plan = plan_of("task_arithmetic", tensors["base"], {"a": tensors["a"]}, weight=(1.0,))
        plan = replace(plan, sources={"a": CheckpointDeltas(model)})
        out, asked = torch.full(shapes["w"], torch.nan), list[int]()

        def cut_before_the_second(asked: list[int] = asked) -> bool:
            asked.append(1)
            if len(asked) == 2:
                os.truncate(path, path.stat().st_size - 1)
            return False

        with pytest.raises(PlanError, match=r"^w: .*model\.safetensors changed since .* register"):
            build(plan, {"w": out}.__getitem__, cancelled=cut_before_the_second, num_workers=1)
        assert not out[: 2 * SIZE].isnan().any()
        assert out[2 * SIZE :].isnan().all()
        with pytest.raises(SourceError, match=r"model\.safetensors changed"):
            check_unchanged(plan)


def test_small_tensors_share_tasks() -> None:
    """Tasks have whole tensors, in order, until they are large enough."""
    shapes = {"a": (10,), "b": (GROUP,), "c": (GROUP // 2,), "d": (3,)}
    tensors = random_tensors(shapes, seed=1)
    plan = plan_of("linear", tensors, {"s": tensors}, weight=(1.0,))
    groups = [[tensor.name for tensor in group] for group in grouped_by_size(plan.tensors)]
    assert groups == [["a", "b"], ["c", "d"]]
