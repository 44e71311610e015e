"""Why a recipe that is well formed cannot be built, before any tensor is looked at."""

from collections.abc import Iterable, Iterator, Mapping

from merging.base import Base
from merging.methods import METHODS
from merging.models import Source
from merging.recipe import BASE, Recipe
from merging.section import Section
from merging.wording import shown


def source_reasons(
    names: Iterable[str],
    sources: Mapping[str, Source],
    unusable: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Why sources cannot be used, one reason for each that has no content."""
    unusable = unusable or {}
    for name in names:
        if name in unusable:
            yield f"sources.{name}: cannot be used: {unusable[name]}"
        elif name != BASE and name not in sources:
            known = shown(sorted({*sources, *unusable}), limit=20) or "none"
            yield f"sources.{name}: is not a registered source; registered are: {known}"


def model_reasons(recipe: Recipe, base: Base) -> Iterator[str]:
    """Why the method cannot take so many models, or this base_model."""
    method = METHODS[recipe.method]
    for section in recipe.sections(base.num_layers):
        if method.base == "required" and section.base_model is None:
            yield (
                f"{section.where}base_model: {method.name} needs one, and got null; name a source, "
                'or "base" for the model that is served'
            )
        yield from _count_reasons(recipe, section)


def _count_reasons(recipe: Recipe, section: Section) -> Iterator[str]:
    method, count = METHODS[recipe.method], len(section.sources)
    low, high = method.min_sources, method.max_sources
    if count >= low and (high is None or count <= high):
        return
    wanted = f"at least {low}" if high is None else str(low) if low == high else f"{low} to {high}"
    beside = "" if section.base_model is None else f" beside base_model {section.base_model!r}"
    is_one_more = section.base_model == BASE and count - 1 == low == high
    hint = "; one of them may be the base_model" if is_one_more else ""
    plural = "s" if wanted != "1" else ""
    yield (
        f"{section.where}sources: {method.name} takes {wanted} source{plural}{beside}, and got "
        f"{count}: {', '.join(section.sources) or 'none'}{hint}"
    )
