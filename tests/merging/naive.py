"""A merge done the slow way: whole models in memory, layer by layer, as the definitions read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from merging.adapter import Adapter, LowRank
from merging.base import Base
from merging.blend import Blend
from merging.digest import json_digest
from merging.methods import METHODS
from merging.methods.apply import merge_tensor
from merging.recipe import BASE, Recipe
from merging.setting import resolve
from merging.variant import VariantPlan

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MemoryWeights:
    """`Weights` of tensors in memory."""

    tensors: Mapping[str, torch.Tensor]
    name: str = "memory"

    @cached_property
    def digest(self) -> str:
        return json_digest([self.name, sorted(self.tensors)])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def state_of(model: torch.nn.Module, tied: bool = False) -> State:
    """The tensors that a checkpoint of a model holds."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if tied:
        del state["lm_head.weight"]
    return state


def perturbed(state: State, seed: int, scale: float = 0.05) -> State:
    """A fine-tune: the same tensors with noise."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + scale * torch.randn(t.shape, generator=generator) for n, t in state.items()}


def random_adapter(base: Base, digest: str, rank: int, contains: str) -> Adapter:
    """A random adapter on the linear layers whose names contain a text."""
    generator = torch.Generator().manual_seed(rank)
    factors = {}
    for name, linear in base.linears.items():
        if contains in name:
            a = torch.randn(rank, linear.in_features, generator=generator)
            b = 0.1 * torch.randn(linear.out_features, rank, generator=generator)
            factors[name] = LowRank(a, b, 1.5 / rank)
    return Adapter(digest, factors, None, None, Path(digest), 100 * rank)


def with_adapter(state: State, adapter: Adapter, base: Base, tied: bool = False) -> State:
    """A model with an adapter merged into it; a tied head gets its own tensor."""
    merged = dict(state)
    if tied:
        merged["lm_head.weight"] = state["model.embed_tokens.weight"]
    for module, factor in adapter.factors.items():
        dense = factor.scale * factor.b.float() @ factor.a.float()
        dense = dense.T if base.linears[module].transposed else dense
        merged[f"{module}.weight"] = merged[f"{module}.weight"] + dense
    return merged


def blended(blend: Blend, base: Base, state: State) -> State:
    """A state with a blend written into it."""
    merged = dict(state)
    for column, module in enumerate(base.linears):
        weight = merged[f"{module}.weight"]
        if blend.base_scales is not None:
            weight = weight * blend.base_scales[column]
        for adapter, row in zip(blend.adapters, blend.coefficients, strict=True):
            if module in adapter.factors:
                factor = adapter.factors[module]
                dense = factor.scale * factor.b @ factor.a
                dense = dense.T if base.linears[module].transposed else dense
                weight = weight + row[column] * dense
        merged[f"{module}.weight"] = weight
    return merged


def built(plan: VariantPlan) -> State:
    """The tensors of a planned variant."""
    merged = {name: plan.resident.tensor(own).float() for name, own in plan.shared.items()}
    for tensor in plan.tensors:
        base = None if tensor.base is None else plan.base.tensor(tensor.base).float()
        origin = torch.zeros(tensor.shape) if base is None else base
        sources = [plan.sources[part.source] for part in tensor.ingredients]
        merged[tensor.name] = merge_tensor(
            plan.method,
            tensor.values,
            base,
            [s.delta(p.tensor, origin) for s, p in zip(sources, tensor.ingredients, strict=True)],
            seed=plan.seed,
            digests=[source.digest for source in sources],
            tensor_name=tensor.name,
        )
    return merged


def merge(
    recipe: Recipe, states: Mapping[str, State], num_layers: int, digests: Mapping[str, str]
) -> State:
    """Merge whole models by a recipe; `states` holds them by name, the base's under "base"."""
    method = METHODS[recipe.method]
    names = sorted(recipe.sources)
    parts = [(dict.fromkeys(names, 0), recipe.base_model, num_layers)]
    if recipe.slices is not None:
        parts = [
            (
                {source.model: source.layer_range[0] for source in part.sources},
                part.base_model or recipe.base_model,
                part.sources[0].layer_range[1] - part.sources[0].layer_range[0],
            )
            for part in recipe.slices
        ]
    merged: State = {}
    number = 0
    for index, (starts, base_model, count) in enumerate(parts):
        if method.base == "input":
            base_model = None
        sources = [name for name in starts if name != base_model]
        start = starts.get(base_model or "", next(iter(starts.values())))
        where = index if recipe.slices is not None else None
        outside = [name for name in states[BASE] if ".layers." not in name]
        first = [name for name in outside if "embed" in name] if index == 0 else []
        last = [name for name in outside if "embed" not in name] if index == len(parts) - 1 else []
        kinds = [n.split(".", 3)[3] for n in states[BASE] if n.startswith("model.layers.0.")]
        jobs = [(name, dict.fromkeys([*sources, base_model], name), 0.0) for name in first + last]
        for offset in range(count):
            t = offset / (count - 1) if count > 1 else 1.0
            own_starts = {name: starts.get(name or "", start) for name in [*sources, base_model]}
            layers = {name: own_start + offset for name, own_start in own_starts.items()}
            for kind in kinds:
                own = {name: f"model.layers.{layer}.{kind}" for name, layer in layers.items()}
                jobs.append((f"model.layers.{number}.{kind}", own, t))
            number += 1
        for name, own, t in jobs:
            values = {}
            for parameter in method.parameters:
                if parameter.scope == "recipe":
                    setting = recipe.setting(parameter, None, where)
                    values[parameter.name] = resolve(setting, name, t)
                else:
                    values[parameter.name] = tuple(
                        resolve(recipe.setting(parameter, source, where), own[source], t)
                        for source in sources
                    )
            base = None if base_model is None else states[base_model][own[base_model]].float()
            whole = [states[source][own[source]].float() for source in sources]
            merged[name] = merge_tensor(
                method,
                values,
                base,
                [x if base is None else x - base for x in whole],
                seed=recipe.seed,
                digests=[digests[source] for source in sources],
                tensor_name=name,
            )
    return merged
