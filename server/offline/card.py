"""The model card of what is written offline."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from merging.adapter import Adapter
from merging.errors import RecipeError
from merging.mergekit import to_mergekit
from merging.model_card import ModelCard
from merging.recipe import BASE, Recipe
from server.engine.location import is_hub_id
from server.offline.opening import OpenMerge


def card_of(
    merge: OpenMerge,
    title: str,
    *,
    library: str = "transformers",
    dtype: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """README.md of a merge. `dtype` is that of what is written, if it is not the merge's."""
    names = published_names(merge)
    digests = {name: source.digest for name, source in merge.plan.sources.items()}
    used = [name for name in sorted(names) if name in digests]
    return ModelCard(
        title=title,
        digest=merge.plan.digest,
        method=merge.recipe.method,
        seed=merge.recipe.seed,
        dtype=dtype or merge.base.base.dtype,
        models={
            names[BASE]: merge.base.base.digest,
            **{names[name]: digests[name] for name in used},
        },
        recipe=_recipe(merge.recipe, names),
        library=library,
        notes=notes,
    ).text()


def published_names(merge: OpenMerge) -> dict[str, str]:
    """What a card calls each model, by its name in the recipe: its hub id, else its folder's name.

    The paths of this machine are nobody else's business.
    """
    folders = {BASE: merge.base.folder, **merge.folders}
    spelled = {BASE: merge.base.spelling, **merge.spellings}
    names: dict[str, str] = {}
    for name, text in spelled.items():
        candidates = [text if is_hub_id(text) else folders[name].name, name, f"{name}-{len(names)}"]
        names[name] = next(c for c in candidates if c not in names.values())
    return names


def base_hub_id(merge: OpenMerge) -> str | None:
    """The hub id of the base: its own, else the one that all adapters of the merge record.

    None if neither is known: a path of this machine would mean nothing elsewhere.
    """
    if is_hub_id(merge.base.spelling):
        return merge.base.spelling
    sources = merge.plan.sources.values()
    recorded = {source.base_name for source in sources if isinstance(source, Adapter)}
    ids = {name for name in recorded if name is not None and is_hub_id(name)}
    return ids.pop() if len(ids) == 1 else None


def _recipe(recipe: Recipe, names: Mapping[str, str]) -> dict[str, JsonValue]:
    """In mergekit's form; in the native one where mergekit has no words for it."""
    try:
        return dict(to_mergekit(recipe, lambda name: names[name]))
    except RecipeError:
        native: dict[str, JsonValue] = recipe.model_dump(mode="json", exclude_none=True)
        return native
