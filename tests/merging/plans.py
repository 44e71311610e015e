"""Plans of variants made by hand, of tensors in memory, and what a build makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch

from merging.build import BuildReport, build
from merging.digest import json_digest, value_digest
from merging.methods import METHODS
from merging.methods.apply import merge_tensor
from merging.pieces import Scratch
from merging.source import CheckpointDeltas, DeltaSource
from merging.thresholds import find_thresholds
from merging.variant import Ingredient, TensorPlan, VariantPlan
from tests.merging.methods.one_tensor import values_of

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class MemoryWeights:
    """Weights of a model that is in memory."""

    tensors: Tensors

    @cached_property
    def digest(self) -> str:
        return json_digest([[name, value_digest(t)] for name, t in self.tensors.items()])

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    near: Tensors | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, torch.Tensor]:
    """Random tensors; `near` others, as those of a fine-tune are near its base's."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (noise if near is None else near[name].float() + 0.05 * noise).to(dtype)
    return tensors


def plan_of(
    method: str,
    base: Tensors,
    sources: Mapping[str, Tensors | DeltaSource],
    dtype: str = "float32",
    seed: int = 5,
    **given: Any,
) -> VariantPlan:
    """A plan that merges all tensors of the base; `given` are values of parameters."""
    weights = MemoryWeights(base)
    own = METHODS[method]
    names = None if own.base == "input" else weights
    tensors = tuple(
        TensorPlan(
            name=name,
            shape=shape,
            base=None if names is None else name,
            ingredients=tuple(Ingredient(source, name) for source in sources),
            values=values_of(own, len(sources), **given),
        )
        for name, shape in weights.shapes.items()
    )
    return VariantPlan(
        digest="digest",
        method=own,
        resident=weights,
        base=weights,
        sources={
            name: source_of(source) if isinstance(source, Mapping) else source
            for name, source in sources.items()
        },
        tensors=tensors,
        shared={},
        layers=(),
        dtype=dtype,
        seed=seed,
        num_bytes=sum(prod(t.shape) for t in tensors) * getattr(torch, dtype).itemsize,
    )


def source_of(tensors: Tensors) -> CheckpointDeltas:
    return CheckpointDeltas(MemoryWeights(tensors))


def built(plan: VariantPlan, **options: Any) -> tuple[dict[str, torch.Tensor], BuildReport]:
    """Build a plan into new tensors."""
    dtype = getattr(torch, plan.dtype)
    out = {t.name: torch.full(t.shape, torch.nan, dtype=dtype) for t in plan.tensors}
    report = build(plan, out.__getitem__, **options)
    return out, report


def whole(plan: VariantPlan) -> dict[str, torch.Tensor]:
    """The plan done by the plain reference, every tensor whole, in float32."""
    run = lambda tasks: [task() for task in tasks]  # noqa: E731
    thresholds = find_thresholds(plan, None, Scratch(), run)
    merged = {}
    for tensor in plan.tensors:
        base = None if tensor.base is None else plan.base.tensor(tensor.base).float()
        start = torch.zeros(tensor.shape) if base is None else base
        if not start.numel():
            merged[tensor.name] = start
            continue
        used = [(plan.sources[own.source], own.tensor) for own in tensor.ingredients]
        digests = [source.digest for source, _ in used]
        trims = [plan.method.trim_values(tensor.values, i) for i in range(len(used))]
        merged[tensor.name] = merge_tensor(
            plan.method,
            tensor.values,
            base,
            [source.delta(name, start) for source, name in used],
            seed=plan.seed,
            digests=digests,
            tensor_name=tensor.name,
            thresholds=[
                thresholds.get((digest, tuple(sorted(values.items()))))
                for digest, values in zip(digests, trims, strict=True)
            ],
        )
    return merged


def sequence(values: Sequence[float], count: int) -> tuple[float, ...]:
    """The first few of some values."""
    return tuple(values[:count])
