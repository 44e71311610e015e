"""Checkpoints made to fit the base: its names of tensors, and what is known of its vocabulary."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import torch

from merging.aligned_weights import AlignedWeights
from merging.base import Base, locate
from merging.checkpoint import TensorEntry
from merging.checkpoint_check import check_checkpoint
from merging.checkpoint_weights import CheckpointWeights, natural_order
from merging.digest import json_digest
from merging.errors import SourceError
from merging.models import Source
from merging.recipe import BASE, UNION, Recipe
from merging.source import Weights
from merging.vocabulary import VocabularyDifference, difference, read_tokens
from merging.wording import shown

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
    named = under_model_names(opened, base)
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


def under_model_names(weights: CheckpointWeights, base: Base) -> CheckpointWeights:
    """A checkpoint's files under the names that the base's parameters have in the model.

    A head that is tied in the base and saved a second time is left out. Raises SourceError if two
    tensors of the files are one of the model's.
    """
    names = base.naming(weights.entries)
    entries = {names[own]: entry for own, entry in weights.entries.items()}
    if len(entries) < len(names):
        counts = Counter(names.values())
        twice = sorted(own for own, name in names.items() if counts[name] > 1)
        raise SourceError(f"{weights.folder} holds tensors twice, under two names: {shown(twice)}")
    named = _with_entries(weights, entries)
    copies = {head for head, own in base.ties.items() if _is_copy(named, head, own)}
    if not copies:
        return named
    return _with_entries(weights, {n: e for n, e in entries.items() if n not in copies})


def _with_entries(
    weights: CheckpointWeights, entries: Mapping[str, TensorEntry]
) -> CheckpointWeights:
    if entries == weights.entries:
        return weights
    shapes = {name: entries[name].shape for name in sorted(entries, key=natural_order)}
    return replace(weights, entries=entries, shapes=shapes)


def _is_copy(weights: CheckpointWeights, name: str, of: str) -> bool:
    shapes = weights.shapes
    if name not in shapes or shapes[name] != shapes.get(of):
        return False
    return torch.equal(weights.tensor(name), weights.tensor(of))


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
