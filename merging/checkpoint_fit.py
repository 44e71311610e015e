"""Checkpoints made to fit the base: its names of tensors, and what is known of its vocabulary."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from merging.aligned_weights import AlignedWeights
from merging.base import Base, locate
from merging.checkpoint_check import check_checkpoint
from merging.checkpoint_weights import CheckpointWeights, natural_order
from merging.digest import json_digest
from merging.errors import SourceError
from merging.models import Source
from merging.recipe import BASE, UNION, Recipe
from merging.source import Weights
from merging.vocabulary import VocabularyDifference, difference, read_tokens

POSITIONS: Final = ("wpe", "position")
"""Parts of the names of tensors whose rows are positions, and no tokens."""

ALIGN: Final = (
    'set tokenizer_source to "base", and each of the base\'s tokens is merged with its own row; '
    "where a source has none, the base's stays"
)


def fit_checkpoint(
    opened: CheckpointWeights, base: Base, resident: CheckpointWeights
) -> tuple[CheckpointWeights, list[str]]:
    """A checkpoint under the base's names, with how its vocabulary differs, and warnings.

    A difference is part of its `digest`, since it decides what aligned tensors are. Raises
    SourceError as `check_checkpoint` does.
    """
    named = under_names(opened, resident.shapes)
    warnings: list[str] = []
    try:
        found = _difference(named, base, resident)
    except SourceError as error:
        found, warnings = None, [f"{error}; its vocabulary is taken for the base's"]
    digest = named.tensors_digest
    if found is not None:
        digest = json_digest([digest, found.digest])
        hint = f"; to merge it {ALIGN}" if found.needs_alignment else ""
        warnings.append(f"its vocabulary is not the base's: {found.told}{hint}")
    fitted = replace(named, digest=digest, vocabulary=found)
    skipped = frozenset() if found is None else vocabulary_tensors(base, resident)
    return fitted, [*check_checkpoint(fitted, base, resident, skipped), *warnings]


def under_base_names(weights: CheckpointWeights, base: Base) -> CheckpointWeights:
    """The base's own files under the names that its parameters have in the model."""
    return under_names(weights, [f"{module}.weight" for module in base.linears])


def under_names(weights: CheckpointWeights, wanted: Collection[str]) -> CheckpointWeights:
    """Files of a model without its head under the names `wanted`, which are those with it.

    Hubs have files with names such as `h.0.attn.c_attn.weight` for what in the model is
    `transformer.h.0.attn.c_attn.weight`. The prefix is added where with it all wanted names in the
    layers are there, and none of them without; other files are returned as they are.
    """
    prefix = _missing_prefix(weights.entries, wanted)
    if not prefix:
        return weights
    named = {n if n in wanted else prefix + n: entry for n, entry in weights.entries.items()}
    if len(named) < len(weights.entries):
        return weights
    shapes = {name: named[name].shape for name in sorted(named, key=natural_order)}
    return replace(weights, entries=named, shapes=shapes)


def _missing_prefix(names: Collection[str], wanted: Collection[str]) -> str:
    inside = [name for name in wanted if locate(name) is not None]
    if not inside or any(name in names for name in inside):
        return ""
    parts = inside[0].split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if all(n.startswith(prefix) and n.removeprefix(prefix) in names for n in inside):
            return prefix
    return ""


def vocabulary_tensors(base: Base, resident: Weights) -> frozenset[str]:
    """The tensors of the base with a row for each token: embedding, head, and the head's bias."""
    heads = [module for module in base.linears if locate(module) is None]
    if not heads:
        return frozenset()
    head, rows = heads[-1], base.linears[heads[-1]].out_features
    found = {
        name
        for name, shape in resident.shapes.items()
        if locate(name) is None
        and len(shape) == 2
        and shape[0] == rows
        and not any(part in name for part in POSITIONS)
    }
    bias = f"{head}.bias"
    return frozenset(found | ({bias} if bias in resident.shapes else set()))


def _difference(
    named: CheckpointWeights, base: Base, resident: CheckpointWeights
) -> VocabularyDifference | None:
    names = vocabulary_tensors(base, resident)
    own_rows = {named.shapes[name][0] for name in names if named.shapes.get(name)}
    if len(own_rows) != 1:
        return None
    expected = {resident.shapes[name][0] for name in names}
    tokens, own = read_tokens(resident.folder), read_tokens(named.folder)
    if tokens is None or own is None:
        return None
    return difference(tokens, own, expected.pop(), own_rows.pop())


def vocabulary_reasons(recipe: Recipe, sources: Mapping[str, Source]) -> Iterator[str]:
    """Why models of these vocabularies cannot be merged as the recipe says."""
    choice, others = recipe.tokenizer_source, _others(sources)
    if choice not in (None, BASE, UNION) and choice not in recipe.models:
        yield (
            f"tokenizer_source: {choice!r} is neither base, union, nor one of the models of the "
            "recipe"
        )
    for name, found in others.items():
        if choice is None and found.needs_alignment:
            yield f"sources.{name}: its vocabulary is not the base's: {found.told}; {ALIGN}"
        if (choice == UNION and found.added) or choice == name:
            yield (
                f"tokenizer_source: {choice!r} would change the vocabulary, which is the base's: "
                f"of {name} it is said that {found.told}; {ALIGN}"
            )


def aligned(
    recipe: Recipe, sources: Mapping[str, Source], base: Base, resident: Weights | None
) -> dict[str, Source]:
    """The sources with their rows in the order of the base's vocabulary, where the recipe asks for
    that; and where they cannot be merged else, for which there are `vocabulary_reasons`.
    """
    asked = recipe.tokenizer_source is not None
    others = {n: d for n, d in _others(sources).items() if asked or d.needs_alignment}
    if resident is None or not others:
        return dict(sources)
    names = vocabulary_tensors(base, resident)
    return {
        name: AlignedWeights(source, resident, names)
        if name in others and isinstance(source, CheckpointWeights)
        else source
        for name, source in sources.items()
    }


def _others(sources: Mapping[str, Source]) -> Mapping[str, VocabularyDifference]:
    return {
        name: source.vocabulary
        for name, source in sources.items()
        if isinstance(source, CheckpointWeights) and source.vocabulary is not None
    }
