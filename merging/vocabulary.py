"""Vocabularies: which token each row of an embedding is of, and how two models differ in it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from merging.digest import json_digest
from merging.errors import SourceError
from merging.regular_file import is_there, read_file
from merging.wording import malformed

TOKENIZER: Final = "tokenizer.json"
OLD_FILES: Final = ("vocab.json", "added_tokens.json")
SHOWN: Final = 3

Tokens = Mapping[str, int]
"""The row of each token."""


@dataclass(frozen=True, slots=True, eq=False)
class VocabularyDifference:
    """How a model's vocabulary differs from the base's.

    `rows`: int64 [rows of the base], for each row of the base the model's row of the same token, or
    -1 where it has none; rows without a token in either model are their own. `added`: tokens that
    the base has not. `told`: all of it in words. `needs_alignment`: the same row is of another
    token, or there are more or fewer rows, so that the tensors cannot be merged as they are.
    """

    digest: str
    rows: torch.Tensor
    added: tuple[str, ...]
    told: str
    needs_alignment: bool


def read_tokens(folder: Path) -> Tokens | None:
    """The vocabulary of a folder's tokenizer.json, or of vocab.json and added_tokens.json; None if
    there is none of them (a SentencePiece model alone is not read).

    Raises SourceError for a file that cannot be read.
    """
    try:
        if is_there(folder / TOKENIZER):
            return _of_tokenizer(json.loads(read_file(folder / TOKENIZER)))
        if is_there(folder / OLD_FILES[0]):
            found = [folder / name for name in OLD_FILES if is_there(folder / name)]
            return {str(t): int(i) for path in found for t, i in _items(path)}
    except OSError as error:
        raise SourceError(f"the vocabulary of {folder} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"the vocabulary of {folder} cannot be read: {malformed(error)}"
        ) from error
    return None


def _of_tokenizer(content: Any) -> Tokens:
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        tokens = {str(token): int(row) for token, row in vocabulary.items()}
    else:  # Unigram: a list of tokens and their scores
        tokens = {str(token): row for row, (token, _) in enumerate(vocabulary)}
    for added in content.get("added_tokens") or ():
        tokens[str(added["content"])] = int(added["id"])
    return tokens


def _items(path: Path) -> Any:
    return json.loads(read_file(path)).items()


def difference(
    base: Tokens, own: Tokens, base_rows: int, own_rows: int
) -> VocabularyDifference | None:
    """How a model with `own_rows` rows differs from the base; None if it does not."""
    if base == own and base_rows == own_rows:
        return None
    base_at, own_at = ({row: token for token, row in tokens.items()} for tokens in (base, own))
    rows = torch.full((base_rows,), -1, dtype=torch.int64)
    for row in range(base_rows):
        token = base_at.get(row)
        place = row if token is None else own.get(token, -1)
        if place < own_rows and (token is not None or row not in own_at):
            rows[row] = place
    added = sorted(own.keys() - base.keys(), key=lambda token: own[token])
    missing = sorted(base.keys() - own.keys(), key=lambda token: base[token])
    others = [r for r in sorted(base_at.keys() & own_at.keys()) if base_at[r] != own_at[r]]
    told = []
    if own_rows != base_rows:
        told.append(f"it has {own_rows} rows, and the base has {base_rows}")
    if others:
        pairs = [f"row {r} is {own_at[r]!r}, and {base_at[r]!r} in the base" for r in others]
        told.append(f"{len(others)} rows are of other tokens: {_shown(pairs)}")
    if added:
        names = [f"{token!r} (row {own[token]})" for token in added]
        told.append(f"it has {len(added)} tokens that the base has not: {_shown(names)}")
    if missing:
        names = [f"{token!r} (row {base[token]} of the base)" for token in missing]
        told.append(f"it lacks {len(missing)} of the base's tokens: {_shown(names)}")
    return VocabularyDifference(
        digest=json_digest([own_rows, rows.tolist(), added]),
        rows=rows,
        added=tuple(added),
        told="; ".join(told),
        needs_alignment=bool(others) or own_rows != base_rows,
    )


def _shown(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
