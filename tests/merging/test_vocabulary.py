"""Vocabularies are read from tokenizers, and compared row by row."""

import json
from pathlib import Path

import pytest

from merging.errors import SourceError
from merging.vocabulary import difference, read_tokens
from tests.tokenizers import byte_tokenizer

BASE = {"<pad>": 0, "a": 1, "b": 2, "c": 3}


def test_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    """All that the tokenizer knows, added tokens too."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path)
    tokens = read_tokens(tmp_path)
    assert tokens == tokenizer.get_vocab()
    assert tokens["<think>"] == 259


def test_tokens_of_other_files(tmp_path: Path) -> None:
    """A Unigram model lists its tokens; old folders have vocab.json; others tell nothing."""
    assert read_tokens(tmp_path) is None
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 2}))
    assert read_tokens(tmp_path) == {"a": 0, "b": 1, "<x>": 2}
    unigram = {"model": {"vocab": [["<unk>", 0.0], ["▁a", -1.5]]}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert read_tokens(tmp_path) == {"<unk>": 0, "▁a": 1}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"vocab": 3}}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    """What cannot be read is an error with the folder."""
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(SourceError, match=f"vocabulary of {tmp_path}"):
        read_tokens(tmp_path)


def test_equal_vocabularies_do_not_differ() -> None:
    """Neither do models with as many rows beyond them."""
    assert difference(BASE, dict(reversed(BASE.items())), 8, 8) is None


def test_moved_tokens_are_found_again() -> None:
    """Each of the base's rows gets the model's row of its token; what is of another token is told
    with both.
    """
    found = difference(BASE, {"<pad>": 0, "b": 1, "a": 2, "x": 3}, 4, 4)
    assert found is not None
    assert found.rows.tolist() == [0, 2, 1, -1]
    assert found.needs_alignment
    assert found.added == ("x",)
    for part in (
        "3 rows are of other tokens: row 1 is 'b', and 'a' in the base, row 2 is 'a'",
        "it has 1 tokens that the base has not: 'x' (row 3)",
        "it lacks 1 of the base's tokens: 'c' (row 3 of the base)",
    ):
        assert part in found.told


def test_tokens_in_spare_rows_harm_nobody() -> None:
    """A token in a row that is none of the base's is told, and needs no alignment; the row of a
    token is not taken for a spare one.
    """
    found = difference(BASE, {**BASE, "<think>": 5}, 8, 8)
    assert found is not None
    assert not found.needs_alignment
    assert found.rows.tolist() == [0, 1, 2, 3, 4, -1, 6, 7]
    assert found.told == "it has 1 tokens that the base has not: '<think>' (row 5)"


@pytest.mark.parametrize(("rows", "spare"), [(4, [-1, -1]), (12, [4, 5])])
def test_more_and_fewer_rows(rows: int, spare: list[int]) -> None:
    """Other padding needs alignment; the base's spare rows stay where there are no others."""
    found = difference(BASE, BASE, 6, rows)
    assert found is not None
    assert (found.rows.tolist(), found.needs_alignment) == ([0, 1, 2, 3, *spare], True)
    assert found.told == f"it has {rows} rows, and the base has 6"


def test_many_rows_are_counted() -> None:
    """The first three are named."""
    tokens = {str(i): i for i in range(10)}
    found = difference(tokens, {str((i + 1) % 10): i for i in range(10)}, 10, 10)
    assert found is not None
    assert "10 rows are of other tokens" in found.told
    assert found.told.endswith("and 7 more")


def test_the_digest_tells_differences_apart() -> None:
    """It is part of what a source is."""
    others = [{"<pad>": 0, "b": 1, "a": 2, "c": 3}, {"<pad>": 0, "b": 1, "c": 2, "a": 3}]
    digests = {d.digest for own in others if (d := difference(BASE, own, 4, 4)) is not None}
    assert len(digests) == 2
