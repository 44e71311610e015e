"""A plan: what a recipe becomes on this base with these sources, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import torch

from merging.adapter import Adapter
from merging.base import Base, locate
from merging.blend import Blend
from merging.blending import Array, Gram, combine, make_blend
from merging.checkpoint_fit import aligned, vocabulary_reasons
from merging.digest import json_digest
from merging.errors import PlanError
from merging.explaining import blend_groups, explain_source, planned_groups, shared_groups
from merging.explanation import Explanation
from merging.fit import fit_problems
from merging.gram import adapter_gram
from merging.layout import Layout, Layouts, range_problems
from merging.low_rank import LowRankPlan, low_rank_blend, low_rank_reasons, make_low_rank
from merging.methods import METHODS
from merging.methods.core_basis import Bases, new_basis
from merging.models import Models, Source
from merging.path import why_blended, why_written
from merging.recipe import Recipe
from merging.refusals import model_reasons, source_reasons
from merging.resolution import Resolution, resolve_recipe
from merging.shares import blend_means, mean_shares
from merging.source import Weights
from merging.variant import VariantPlan
from merging.wording import shown
from merging.writing import make_variant

__all__ = ["Plan", "base_plan", "plan", "source_reasons"]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A recipe compiled for a base.

    `path` says how it is served and `reason` why. `blend` has the digest on every path, and is
    empty where a `variant` is to be built. `sources` has the recipe's models but the base.

    `coefficients` of a blend are what the recipe resolves to for each source: float64
    [num_modules], columns in the order of `base.linears`; a variant has none. `members` has the
    mean coefficient of each source over the tensors that it touches, and `weights` the means of the
    sources' weights, as they were before the method combined them. Of a variant the members are
    its `shares`: none for a method without weights.

    A blend of one adapter that a `low_rank` method made of the sources has no coefficients of
    theirs, and shares like a variant.
    """

    path: Literal["base", "blend", "variant"]
    reason: str
    blend: Blend
    base: Base
    sources: Mapping[str, Source]
    coefficients: Mapping[str, Array]
    members: Mapping[str, float]
    weights: Mapping[str, float]
    variant: VariantPlan | None = None
    low_rank: LowRankPlan | None = None
    build_seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """Those of the sources that are adapters."""
        return {name: s for name, s in self.sources.items() if isinstance(s, Adapter)}

    @property
    def digest(self) -> str:
        """Identifies the weights."""
        return self.blend.digest

    @property
    def own_bytes(self) -> int:
        """What the plan itself keeps in memory beside its sources."""
        return 0 if self.low_rank is None else self.low_rank.num_bytes

    def explain(self) -> Explanation:
        """The plan in plain values."""
        active, variant = self.blend.adapters, self.variant
        planned = variant or self.low_rank
        groups = {
            name: blend_groups(self.sources.get(name), self.base, row)
            for name, row in self.coefficients.items()
        }
        if planned is not None:
            names = {*self.sources, *(() if variant is None else variant.sources)}
            groups = {name: planned_groups(planned, name) for name in names}
        return Explanation(
            path=self.path,
            reason=self.reason,
            digest=self.digest,
            num_bytes=sum(a.num_bytes for a in active) if variant is None else variant.num_bytes,
            max_rank=max((_total_rank(active, module) for module in self.base.linears), default=0),
            build_seconds=self.build_seconds,
            sources=tuple(
                explain_source(
                    name,
                    self.sources.get(name),
                    self.base,
                    groups[name],
                    self.members.get(name),
                    self.weights.get(name),
                )
                for name in sorted(groups)
            ),
            warnings=self.warnings,
            parameters=() if planned is None else shared_groups(planned),
            num_layers=self.base.num_layers if variant is None else len(variant.layers),
            num_written=0 if variant is None else len(variant.tensors),
        )


def _total_rank(adapters: tuple[Adapter, ...], module: str) -> int:
    return sum(a.factors[module].rank for a in adapters if module in a.factors)


def base_plan(base: Base) -> Plan:
    """The plan of the base alone: an empty blend."""
    digest = json_digest({"base": base.digest, "dtype": base.dtype})
    return Plan("base", "the base as it is", _empty(digest, base), base, {}, {}, {}, {})


def _empty(digest: str, base: Base) -> Blend:
    return Blend(digest, (), torch.zeros(0, len(base.linears)))


def plan(
    recipe: Recipe,
    sources: Mapping[str, Source],
    base: Base,
    unusable: Mapping[str, str] | None = None,
    *,
    weights: Weights | None = None,
    gram: Gram = adapter_gram,
    bases: Bases = new_basis,
    layouts: Layouts | None = None,
) -> Plan:
    """Compile a recipe for a base. `sources` has its models by name, and may have others.

    `unusable` says of registered sources without content why they have none. `weights` are the
    base's tensors, by the names of the model's parameters; without them only linear methods of
    adapters can be planned. `gram` is what geometric methods ask for inner products, `bases` what
    low-rank ones ask for the space of factors; `layouts` of this base and its tensors save work
    where many recipes are planned. Raises PlanError with every
    reason why the recipe cannot be built.
    """
    start = perf_counter()
    used = {name: sources[name] for name in sorted(recipe.models & sources.keys())}
    models = Models(base, weights, aligned(recipe, used, base, weights))
    reasons = [
        *source_reasons(sorted(recipe.models), sources, unusable),
        *model_reasons(recipe, base),
        *vocabulary_reasons(recipe, used),
    ]
    if ranges := list(range_problems(recipe, base)):
        raise PlanError(reasons + ranges)
    layouts = layouts or Layouts(base, None if weights is None else weights.shapes)
    layout = layouts.of(recipe.sections(base.num_layers, models.digests))
    resolution = resolve_recipe(recipe, layout)
    reasons += [*resolution.reasons, *fit_problems(layout, models)]
    if reasons:
        raise PlanError(reasons)
    digest = recipe.digest({name: s.digest for name, s in used.items()}, base)
    made = replace(_compile(recipe, layout, resolution, models, gram, bases, digest), sources=used)
    warnings = (
        *resolution.warnings,
        *_inert(recipe),
        *_other_dtype(recipe, base),
        *_warnings(made),
        *(() if made.variant is None else _beyond(models)),
    )
    return replace(made, build_seconds=perf_counter() - start, warnings=warnings)


def _compile(
    recipe: Recipe,
    layout: Layout,
    resolution: Resolution,
    models: Models,
    gram: Gram,
    bases: Bases,
    digest: str,
) -> Plan:
    """Compile what was found to fit; PlanError if the path that it needs is not possible."""
    method, base = METHODS[recipe.method], models.base
    if method.kind == "low_rank":
        return _low_rank(recipe, layout, resolution, models, bases, digest)
    reason = why_written(method, layout, resolution.tensors, models)
    if models.resident is None and (reason is not None or method.kind == "geometric"):
        needs = reason or f"{method.name} needs the tensors of the base"
        raise PlanError(
            f"{needs}; but the files of the base could not be mapped, and without them only linear "
            "methods of adapters are possible"
        )
    if reason is None:
        combined = combine(method, layout, resolution.tensors, models, gram)
        members, weights = blend_means(combined.rows, layout, resolution.tensors, models)
        blend = make_blend(digest, combined, models)
        rows, sources = combined.rows, models.sources
        return Plan("blend", why_blended(method), blend, base, sources, rows, members, weights)
    variant = make_variant(
        method,
        layout,
        resolution.tensors,
        models,
        digest=digest,
        dtype=base.dtype,
        seed=recipe.seed,
    )
    members, weights = mean_shares(variant)
    empty = _empty(digest, base)
    return Plan("variant", reason, empty, base, models.sources, {}, members, weights, variant)


def _low_rank(
    recipe: Recipe,
    layout: Layout,
    resolution: Resolution,
    models: Models,
    bases: Bases,
    digest: str,
) -> Plan:
    method, base = METHODS[recipe.method], models.base
    if reasons := list(low_rank_reasons(method, layout, models)):
        raise PlanError(reasons)
    made = make_low_rank(method, layout, resolution.tensors, models, recipe.seed, bases)
    members, weights = mean_shares(made)
    blend, sources = low_rank_blend(made, digest, base), models.sources
    return Plan(
        "blend", why_blended(method), blend, base, sources, {}, members, weights, low_rank=made
    )


def _inert(recipe: Recipe) -> Iterator[str]:
    parts = recipe.slices or ()
    levels = [recipe.parameters, *recipe.sources.values(), *(part.parameters for part in parts)]
    levels += [source.parameters for part in parts for source in part.sources]
    given = {name for level in levels for name in level}
    for parameter in METHODS[recipe.method].parameters:
        if parameter.doc.inert and parameter.name in given:
            yield f"{parameter.name} has no effect in {recipe.method}"


def _other_dtype(recipe: Recipe, base: Base) -> Iterator[str]:
    if recipe.dtype not in (None, base.dtype):
        yield (
            f"dtype: merged in float32 and served in {base.dtype}, as the base is; {recipe.dtype} "
            "is what `mergeserve merge` and `mergeserve export` write"
        )


def _beyond(models: Models) -> Iterator[str]:
    """Files may have layers that the model does not run, for predicting several tokens at once."""
    count = models.base.num_layers
    places = ((name, locate(name)) for name in models.shapes)
    if left := [name for name, place in places if place is not None and place.layer >= count]:
        yield f"{shown(left)} are beyond the model's {count} layers: they are left out"


def _warnings(plan: Plan) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, source in sorted(plan.sources.items()):
        names.setdefault(source.digest, []).append(name)
    is_sum = plan.path == "blend" and plan.low_rank is None
    so = "their coefficients are added" if is_sum else "they count as two models"
    for same in names.values():
        if len(same) > 1:
            yield f"{' and '.join(same)} have the same content: {so}"
