"""Trims over whole sources: the k-th largest magnitude of all tensors together."""

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.pieces import Scratch
from merging.source import CheckpointDeltas
from merging.thresholds import find_thresholds
from merging.trim_cache import TrimCache
from tests.merging.plans import MemoryWeights, plan_of, random_tensors

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
