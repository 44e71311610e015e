"""Doubts about a plan, from its figures alone."""

from typing import Any

import pytest

from merging.checkpoint_weights import open_checkpoint
from merging.doubts import weight_doubt
from merging.plan import Plan, plan
from merging.recipe import Recipe
from tests.merging.tiny import flat_adapter, flat_base
from tests.server.presets.forge import write_checkpoint
from tests.server.presets.tiny import tiny_base

BASE = flat_base(num_layers=3)
ADAPTERS = {
    name: flat_adapter(BASE, f"sha256:{index}") for index, name in enumerate(("sql", "json", "c"))
}


def made(sources: dict[str, Any], method: str = "task_arithmetic", **parameters: Any) -> Plan:
    """A plan of adapters; sources are by weight."""
    own = {name: w if isinstance(w, dict) else {"weight": w} for name, w in sources.items()}
    return plan(
        Recipe.model_validate({"method": method, "sources": own, "parameters": parameters}),
        ADAPTERS,
        BASE,
    )


@pytest.mark.parametrize(
    ("sources", "parameters"),
    [
        ({"sql": 1000}, {}),
        ({"sql": 3, "json": 3}, {}),
        ({"sql": -5}, {}),
        ({"sql": 0.5, "json": 0.5}, {"lambda": 1000}),
        ({"sql": 0.5, "json": 0.5}, {"lambda": 5}),
        ({"sql": 1.4, "json": 1, "c": 1}, {}),
        ({"sql": [10, -10]}, {}),
    ],
)
def test_weights_far_above_one(sources: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Sources that count far more often than once are doubted, and each is named."""
    (doubt,) = made(sources, **parameters).doubts
    assert "times in all" in doubt
    assert all(name in doubt for name in sources)


@pytest.mark.parametrize(
    ("sources", "method", "parameters"),
    [
        ({"sql": 1}, "task_arithmetic", {}),
        ({"sql": 1, "json": 1}, "task_arithmetic", {}),
        ({"sql": 1, "json": 1, "c": 1}, "task_arithmetic", {}),
        ({"sql": 2}, "task_arithmetic", {}),
        ({"sql": 1, "json": -1}, "task_arithmetic", {}),
        ({"sql": 0.3, "json": 0.3}, "task_arithmetic", {"lambda": 1.5}),
        ({"sql": 5, "json": 9}, "linear", {}),
        ({"sql": 0.5, "json": 0.5}, "linear", {"normalize": False}),
    ],
)
def test_what_is_done_every_day(
    sources: dict[str, Any], method: str, parameters: dict[str, Any]
) -> None:
    """A few sources at weight 1, or weights that are normalised, are not doubted."""
    assert made(sources, method, **parameters).doubts == ()


@pytest.mark.parametrize(
    ("method", "source", "parameters", "expected"),
    [
        ("linear", {"weight": 1}, {"normalize": False}, "multiplied by 2"),
        ("linear", {"weight": 1}, {}, ""),
        ("ties", {"weight": 1, "density": 0.001}, {}, "density below 0.01"),
        ("ties", {"weight": 1, "density": 0.2}, {}, ""),
        ("ties", {"weight": 1, "density": 0.2}, {"lambda": 9}, "count 9 times"),
        ("dare_ties", {"weight": 4, "density": 0.5}, {"normalize": False}, "count 8 times"),
        ("task_arithmetic", {"weight": 1}, {}, ""),
    ],
)
def test_variants(
    tmp_path: Any, method: str, source: dict[str, Any], parameters: dict[str, Any], expected: str
) -> None:
    """What is written is doubted for the same reasons as what is blended."""
    base = tiny_base()
    sources = {
        name: open_checkpoint(write_checkpoint(tmp_path / name, seed))
        for seed, name in enumerate(("one", "two"))
    }
    weights = open_checkpoint(write_checkpoint(tmp_path / "base", 7))
    recipe = Recipe.model_validate(
        {"method": method, "sources": dict.fromkeys(sources, source), "parameters": parameters}
    )
    found = plan(recipe, sources, base, weights=weights).doubts
    assert len(found) == bool(expected)
    assert expected in "".join(found)


def test_the_base_does_not_count() -> None:
    """Of what a method leaves to the base, whatever that is, nothing breaks."""
    assert weight_doubt({"base": -8.0, "sql": 1.0}) is None
