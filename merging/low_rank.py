"""Compile a recipe of a low-rank method: one adapter, made of the sources', is the whole merge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from merging.adapter import Adapter, LowRank
from merging.base import Base
from merging.blend import Blend
from merging.digest import json_digest
from merging.errors import PlanError
from merging.layout import Layout
from merging.methods.apply import reordered
from merging.methods.core_basis import Bases
from merging.methods.method import Method
from merging.models import Models
from merging.recipe import BASE
from merging.resolution import Resolved
from merging.variant import Ingredient, TensorPlan
from merging.wording import shown


@dataclass(frozen=True, slots=True, eq=False)
class LowRankPlan:
    """What a low-rank method makes of its sources: `factors` by module.

    `tensors`: for each module that some source touches, by the module's name, what is merged there;
    ingredients are the sources that touch it.
    """

    method: Method
    tensors: tuple[TensorPlan, ...]
    factors: Mapping[str, LowRank]

    @property
    def num_bytes(self) -> int:
        """What the factors take: they are this plan's own, and no source's."""
        return sum(factor.num_bytes for factor in self.factors.values())

    def touching(self, tensor: TensorPlan) -> list[tuple[int, str]]:
        """The sources that are seen in a tensor, with their places among its ingredients."""
        return [(index, part.source) for index, part in enumerate(tensor.ingredients)]


def low_rank_reasons(method: Method, layout: Layout, models: Models) -> Iterator[str]:
    """Why a low-rank method cannot merge these models."""
    if not layout.is_plain:
        yield f"slices: {method.name} makes one adapter of its sources, and stacks no layers"
    if models.checkpoints:
        names = shown(list(models.checkpoints))
        yield f"sources: {method.name} merges the factors of adapters, and {names} has none"
    bases = {place.section.base_model for place in layout.places} - {BASE}
    for base_model in sorted(str(name) for name in bases):
        yield (
            f"base_model: {method.name} merges what adapters add to the base itself, and not "
            f'to {base_model}; use "{BASE}"'
        )


def make_low_rank(
    method: Method,
    layout: Layout,
    tensors: Sequence[Resolved],
    models: Models,
    seed: int,
    bases: Bases,
) -> LowRankPlan:
    """Merge the factors of every module; there must be no `low_rank_reasons`.

    `bases` is what the method asks for what depends on the factors alone. Raises PlanError with
    every reason, by module.
    """
    resolved = {place.name: own for place, own in zip(layout.places, tensors, strict=True)}
    planned: list[TensorPlan] = []
    factors: dict[str, LowRank] = {}
    problems: dict[str, list[str]] = {}
    for module, linear in models.base.linears.items():
        own = resolved[f"{module}.weight"]
        names = own.section.sources
        touching = [i for i, name in enumerate(names) if module in models.adapters[name].factors]
        if not touching:
            continue
        parts = tuple(Ingredient(names[i], f"{module}.weight") for i in touching)
        shape = (linear.out_features, linear.in_features)
        values = reordered(own.values, touching)
        planned.append(TensorPlan(module, shape, f"{module}.weight", parts, values))
        try:
            made = _merge(method, planned[-1], models, seed, bases)
        except PlanError as error:
            for reason in error.reasons:
                problems.setdefault(reason, []).append(module)
        else:
            if bool(made.a.any()) and bool(made.b.any()):
                factors[module] = made
    if problems:
        raise PlanError([f"{reason} ({shown(names)})" for reason, names in problems.items()])
    return LowRankPlan(method, tuple(planned), factors)


def _merge(method: Method, tensor: TensorPlan, models: Models, seed: int, bases: Bases) -> LowRank:
    adapters = [models.adapters[part.source] for part in tensor.ingredients]
    made = method.merge_factors(
        [adapter.factors[tensor.name] for adapter in adapters],
        tensor.values,
        seed=seed,
        digests=[adapter.digest for adapter in adapters],
        tensor_name=f"{tensor.name}.weight",
        bases=bases,
    )
    shape = (made.b.shape[0], made.a.shape[1])
    if shape != tensor.shape:  # a method may be of another package
        raise PlanError(f"{method.name} made factors of {list(shape)} [out, in]")
    dtype: torch.dtype = getattr(torch, models.base.dtype)
    if not all(bool(torch.isfinite(part.to(dtype)).all()) for part in (made.a, made.b)):
        raise PlanError(
            f"the merged factors are not finite in {models.base.dtype}; lower the weights"
        )
    return made


def low_rank_blend(planned: LowRankPlan, digest: str, base: Base) -> Blend:
    """The blend of the adapter that was made; `digest` is the recipe's."""
    if not planned.factors:
        return Blend(digest, (), torch.zeros(0, len(base.linears)))
    adapter = Adapter(
        digest=json_digest({"merged by": digest}),
        factors=planned.factors,
        base_name=None,
        base_digest=None,
        path=Path(),
        num_bytes=planned.num_bytes,
    )
    return Blend(digest, (adapter,), torch.ones(1, len(base.linears)))
