"""Trims over whole sources: the k-th largest magnitude of all tensors together."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.adapter import Adapter, LowRank
from merging.base import Base, Linear
from merging.errors import PlanError, SourceError
from merging.pieces import Scratch
from merging.source import AdapterDeltas, CheckpointDeltas
from merging.thresholds import find_thresholds
from merging.trim_cache import TrimCache
from merging.variant import Ingredient, VariantPlan
from tests.merging.plans import MemoryWeights, built, plan_of, random_tensors

SHAPES = {"a": (40, 30), "b": (7,), "c": (2, 3, 5)}


def run(tasks: Any) -> None:
    for task in tasks:
        task()


def magnitudes(base: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> list[float]:
    """All of a source, the largest first."""
    deltas = [(source[n].float() - base[n].float()).abs().reshape(-1) for n in base]
    return sorted(torch.cat(deltas).tolist(), reverse=True)


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2), st.sampled_from([1.0, 1e-9, 1e9]))
def test_they_are_exact(density: list[float], size: float) -> None:
    """For bfloat16 deltas, which have many equal magnitudes, tiny ones and huge ones."""
    base = {name: size * t for name, t in random_tensors(SHAPES, seed=1).items()}
    sources = {f"s{i}": random_tensors(SHAPES, 2 + i, base) for i in range(2)}
    plan = plan_of("ties", base, sources, scope="model", density=tuple(density))
    found = find_thresholds(plan, None, Scratch(), run)
    for index, own in enumerate(sources.values()):
        expected = magnitudes(base, own)
        k = max(1, int(density[index] * len(expected)))
        digest = plan.sources[f"s{index}"].digest
        values = plan.method.trim_values(plan.tensors[0].values, index)
        assert found[digest, tuple(sorted(values.items()))] == (expected[k - 1],)


def test_an_adapter_is_only_what_it_changes() -> None:
    """Density is a share of the elements of the tensors that it touches, not of zeros elsewhere."""
    shapes = {"x.weight": (8, 6), "untouched.weight": (50, 40)}
    base = random_tensors(shapes, seed=1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(size, generator=generator) for size in ((2, 6), (8, 2)))
    adapter = Adapter("sha256:a", {"x": LowRank(a, b, 1.0)}, None, None, Path("x"), 0)
    flat = Base("flat", "sha256:0", "float32", 0, {"x": Linear(8, 6)})
    source = AdapterDeltas(adapter, flat)
    plan = plan_of("ties", base, {"s": source}, scope="model", density=(0.25,))
    ((threshold,),) = find_thresholds(plan, None, Scratch(), run).values()
    assert threshold == (b @ a).abs().flatten().sort(descending=True).values[11]
    changed = built(plan)[0]["x.weight"] != base["x.weight"]
    assert int(changed.sum()) == 12


def test_several_ranks_of_one_source() -> None:
    """Breadcrumbs needs two of each, and no rank is infinity."""
    base = random_tensors(SHAPES, seed=1)
    sources = {"s": random_tensors(SHAPES, 2, base), "t": random_tensors(SHAPES, 3, base)}
    own = {"density": (0.5, 0.5), "gamma": (0.1, 0.0)}
    plan = plan_of("breadcrumbs", base, sources, scope="model", **own)
    found = find_thresholds(plan, None, Scratch(), run)
    by_digest = {digest: threshold for (digest, _), threshold in found.items()}
    expected = magnitudes(base, sources["s"])
    size = len(expected)
    dropped, kept = int(0.1 * size), int(0.5 * size)
    digests = {name: CheckpointDeltas(MemoryWeights(t)).digest for name, t in sources.items()}
    assert by_digest[digests["s"]] == (expected[dropped - 1], expected[dropped + kept - 1])
    assert by_digest[digests["t"]][0] == math.inf


def test_the_scope_of_a_tensor_needs_none() -> None:
    """Nor do methods without a trim."""
    base = random_tensors(SHAPES, seed=1)
    for method, given_ in (("ties", {"density": (0.5,)}), ("task_arithmetic", {})):
        plan = plan_of(method, base, {"s": random_tensors(SHAPES, 2, base)}, **given_)
        assert find_thresholds(plan, None, Scratch(), run) == {}


def test_a_cache_keeps_them() -> None:
    """The deltas are read again only if the sources, tensors or ranks are others."""
    base, cache = random_tensors(SHAPES, seed=1), TrimCache(1 << 20)
    sources = {"s": random_tensors(SHAPES, 2, base)}
    runs: list[int] = []

    def counted(tasks: Any) -> None:
        runs.append(len(tasks))
        run(tasks)

    first = plan_of("ties", base, sources, scope="model", density=(0.5,))
    edited = plan_of("ties", base, sources, scope="model", density=(0.5,), weight=(0.1,))
    other = plan_of("ties", base, sources, scope="model", density=(0.4,))
    found = find_thresholds(first, cache, Scratch(), counted)
    assert runs == [3, 3]  # two passes over three tensors
    assert find_thresholds(edited, cache, Scratch(), counted) == found
    assert runs == [3, 3]
    find_thresholds(other, cache, Scratch(), counted)
    assert runs == [3, 3, 3, 3]


def test_the_cache_goes_by_content() -> None:
    """Two sources that swap their contents, and tensors, are not mixed up."""
    base, cache = random_tensors({"a": (4, 4), "b": (4, 4)}, seed=1), TrimCache(1 << 20)
    one, other = (random_tensors({"a": (4, 4), "b": (4, 4)}, seed, base) for seed in (2, 3))

    def crossed(sources: dict[str, Any], tensors: dict[str, str]) -> VariantPlan:
        """A plan of one tensor, for which each source has one of its own."""
        plan = plan_of("ties", base, sources, scope="model", density=(0.5, 0.5))
        own = tuple(Ingredient(name, tensors[name]) for name in sources)
        return replace(plan, tensors=(replace(plan.tensors[0], ingredients=own),))

    tensors = {"x": "a", "y": "b"}
    for sources in ({"x": one, "y": other}, {"x": other, "y": one}):
        plan = crossed(sources, tensors)
        assert find_thresholds(plan, cache, Scratch(), run) == find_thresholds(
            plan, None, Scratch(), run
        )


@dataclass(frozen=True)
class Flaky(MemoryWeights):
    """Weights of which one tensor cannot be read while `broken` has its name."""

    broken: set[str] = field(default_factory=set)

    def tensor(self, name: str) -> torch.Tensor:
        if name in self.broken:
            raise SourceError(f"{name} changed")
        return super().tensor(name)


def test_a_source_that_cannot_be_read_has_none() -> None:
    """Those of its other tensors alone would be wrong, and must not be kept for later."""
    base, cache = random_tensors(SHAPES, seed=1), TrimCache(1 << 20)
    weights = Flaky(random_tensors(SHAPES, 2, base), {"a"})
    plan = plan_of("ties", base, {"s": CheckpointDeltas(weights)}, scope="model", density=(0.5,))
    assert find_thresholds(plan, cache, Scratch(), run) == {}
    with pytest.raises(PlanError, match="a changed"):
        built(plan, cache=cache)
    weights.broken.clear()
    found = find_thresholds(plan, cache, Scratch(), run)
    assert found == find_thresholds(plan, None, Scratch(), run) != {}
