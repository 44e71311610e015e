"""Checkpoints under other names, and over other vocabularies, made to fit a base."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.base import Base
from merging.build import build
from merging.checkpoint_fit import fit_checkpoint, under_model_names, vocabulary_tensors
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import PlanError, SourceError
from merging.plan import Plan, plan
from merging.recipe import Recipe
from tests.merging.tiny import base_of, tiny_gpt2, tiny_llama

ROWS = 40
TOKENS = {f"t{i}": i for i in range(38)}
MOVED = {**TOKENS, "t3": 30, "t30": 3}
RENAMED = {**{t: i for t, i in TOKENS.items() if t != "t7"}, "<x>": 7}
LONGER = {**TOKENS, "<x>": 40, "<y>": 41}


def write_tokens(folder: Path, tokens: Mapping[str, int]) -> None:
    text = json.dumps({"model": {"vocab": tokens}, "added_tokens": []})
    (folder / "tokenizer.json").write_text(text)


def save(
    folder: Path, tokens: Mapping[str, int] | None, *, rows: int = ROWS, seed: int = 0
) -> Path:
    """An untied llama whose embedding and head have so many rows."""
    model = tiny_llama()
    model.resize_token_embeddings(rows)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    if tokens is not None:
        write_tokens(folder, tokens)
    return folder


@dataclass
class Pair:
    """A base and a source beside it."""

    base: Base
    resident: CheckpointWeights
    root: Path

    def fit(
        self, tokens: Mapping[str, int] | None, rows: int = ROWS, name: str = "ft"
    ) -> tuple[CheckpointWeights, list[str]]:
        folder = save(self.root / name, tokens, rows=rows, seed=1)
        return fit_checkpoint(open_checkpoint(folder), self.base, self.resident)

    def plan(self, source: CheckpointWeights, **fields: Any) -> Plan:
        recipe = {"method": "task_arithmetic", "sources": {"ft": {"weight": 0.5}}, **fields}
        made = Recipe.model_validate(recipe)
        return plan(made, {"ft": source}, self.base, weights=self.resident)

    def merged(self, source: CheckpointWeights, **fields: Any) -> dict[str, torch.Tensor]:
        variant = self.plan(source, **fields).variant
        assert variant is not None
        out = {tensor.name: torch.empty(tensor.shape) for tensor in variant.tensors}
        build(variant, out.__getitem__)
        return out


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    folder = save(tmp_path / "base", TOKENS)
    resident = open_checkpoint(folder)
    base = base_of(tiny_llama(), digest=resident.digest)
    return Pair(base, resident, tmp_path)


NAMES = ("model.embed_tokens.weight", "lm_head.weight")


def test_tensors_with_a_row_for_each_token(pair: Pair) -> None:
    """Embedding and head; in GPT-2 the tied embedding alone, and no positions."""
    assert vocabulary_tensors(pair.base, pair.resident) == set(NAMES)
    model = tiny_gpt2()
    model.save_pretrained(pair.root / "gpt2")
    weights = open_checkpoint(pair.root / "gpt2")
    assert vocabulary_tensors(base_of(model), weights) == {"transformer.wte.weight"}


def test_the_same_vocabulary_changes_nothing(pair: Pair) -> None:
    """No warning, and the digest is that of the tensors, as it is without a tokenizer at all."""
    for number, tokens in enumerate((TOKENS, None)):
        fitted, warnings = pair.fit(tokens, name=str(number))
        assert (fitted.vocabulary, warnings) == (None, [])
        assert fitted.digest == fitted.tensors_digest
        plain, same = pair.merged(fitted), pair.merged(fitted, tokenizer_source="base")
        assert all(torch.equal(plain[name], same[name]) for name in plain)


@pytest.mark.parametrize(
    ("tokens", "rows", "parts"),
    [
        (MOVED, 40, ["2 rows are of other tokens: row 3 is 't30', and 't3' in the base"]),
        (RENAMED, 40, ["row 7 is '<x>', and 't7' in the base", "it lacks 1 of the base's tokens"]),
        (LONGER, 42, ["it has 42 rows, and the base has 40", "'<x>' (row 40), '<y>' (row 41)"]),
    ],
)
def test_other_tokens_are_aligned_when_asked_and_refused_else(
    pair: Pair, tokens: Mapping[str, int], rows: int, parts: list[str]
) -> None:
    """Every token of the base is merged with the source's own row of it; a token that the source
    lacks keeps the base's row, exactly. Without tokenizer_source the rows are named.
    """
    source, warnings = pair.fit(tokens, rows)
    with pytest.raises(PlanError) as refused:
        pair.plan(source)
    (reason,) = refused.value.reasons
    assert reason.startswith("sources.ft: its vocabulary is not the base's: ")
    for part in (*parts, 'set tokenizer_source to "base"'):
        assert part in reason
        assert part in warnings[0] or part not in parts
    merged = pair.merged(source, tokenizer_source="base")
    for name in NAMES:
        own, base = source.tensor(name), pair.resident.tensor(name)
        assert merged[name].shape == base.shape
        for token, row in TOKENS.items():
            expected = base[row]
            if token in tokens:
                expected = 0.5 * base[row] + 0.5 * own[tokens[token]]
            torch.testing.assert_close(merged[name][row], expected)
    inside = "model.layers.1.mlp.up_proj.weight"
    expected = 0.5 * (pair.resident.tensor(inside) + source.tensor(inside))
    torch.testing.assert_close(merged[inside], expected)


def test_base_rows_stay_exact_beside_a_source_of_less_precision(pair: Pair) -> None:
    """Where a source lacks a token the delta is zero, whatever type the source is of."""
    folder = save(pair.root / "half", RENAMED, seed=1)
    tensors = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    source, _ = fit_checkpoint(open_checkpoint(folder), pair.base, pair.resident)
    merged = pair.merged(source, tokenizer_source="base")
    for name in NAMES:
        assert torch.equal(merged[name][7], pair.resident.tensor(name)[7])


def test_tokens_in_spare_rows_are_a_warning(pair: Pair) -> None:
    """Row 39 is of no token of the base: the models are merged row by row, and it is told."""
    source, warnings = pair.fit({**TOKENS, "<x>": 39})
    assert warnings == [
        "its vocabulary is not the base's: it has 1 tokens that the base has not: '<x>' (row 39)"
    ]
    merged = pair.merged(source)
    expected = 0.5 * (source.tensor(NAMES[0]) + pair.resident.tensor(NAMES[0]))
    torch.testing.assert_close(merged[NAMES[0]], expected)


def test_union_and_sources_are_taken_where_they_mean_the_base(pair: Pair) -> None:
    """What would change the vocabulary is refused with the tokens; a name that is none is too."""
    same, _ = pair.fit(TOKENS, name="same")
    moved, _ = pair.fit(MOVED, name="moved")
    longer, _ = pair.fit(LONGER, 42, name="longer")
    for choice in ("union", "ft"):
        assert (
            pair.plan(same, tokenizer_source=choice).digest
            == pair.plan(same, tokenizer_source="base").digest
        )
        with pytest.raises(PlanError, match=f"'{choice}' would change .*'<y>' \\(row 41\\)"):
            pair.plan(longer, tokenizer_source=choice)
    assert pair.plan(moved, tokenizer_source="union").path == "variant"
    with pytest.raises(PlanError, match="tokenizer_source: 'nobody' is neither base, union, nor"):
        pair.plan(same, tokenizer_source="nobody")


def test_a_tokenizer_is_part_of_the_digest_where_it_decides(pair: Pair) -> None:
    """The same tensors with other tokens are another source, and another merge."""
    one, _ = pair.fit(MOVED, name="one")
    other, _ = pair.fit({**TOKENS, "t4": 30, "t30": 4}, name="other")
    assert one.tensors_digest == other.tensors_digest
    assert one.digest != other.digest
    digests = {pair.plan(s, tokenizer_source="base").digest for s in (one, other)}
    assert len(digests) == 2
    made = pair.plan(one, tokenizer_source="base")
    assert made.sources["ft"].digest == one.digest
    recipe = Recipe(
        method="task_arithmetic", sources={"ft": {"weight": 0.5}}, tokenizer_source="base"
    )
    assert made.digest == recipe.digest({"ft": one.digest}, pair.base)
    again, _ = fit_checkpoint(one, pair.base, pair.resident)
    assert again.digest == one.digest


def test_another_width_is_refused_whatever_the_tokens(pair: Pair) -> None:
    """Only rows can be aligned; without a tokenizer not even these."""
    with pytest.raises(SourceError, match="another vocabulary, 42 rows"):
        pair.fit(None, 42)
    folder = save(pair.root / "wide", LONGER, rows=42)
    tensors = load_file(folder / "model.safetensors")
    tensors[NAMES[0]] = torch.zeros(42, 5)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SourceError, match=r"shape \[42, 5\]"):
        fit_checkpoint(open_checkpoint(folder), pair.base, pair.resident)


def test_a_tokenizer_that_cannot_be_read_is_a_warning(pair: Pair) -> None:
    """The tensors are fit all the same."""
    folder = save(pair.root / "ft", None, seed=1)
    (folder / "tokenizer.json").write_text("{")
    _, (warning,) = fit_checkpoint(open_checkpoint(folder), pair.base, pair.resident)
    assert "cannot be read" in warning
    assert "taken for the base's" in warning


# Names


def strip(folder: Path, prefix: str) -> Path:
    """Write the tensors of a folder without a prefix of their names."""
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors")
    return folder


def test_names_without_the_models_prefix(tmp_path: Path) -> None:
    """As hubs have GPT-2: base and source alike get the names of the model's parameters, and their
    digests stay those of the files.
    """
    model = tiny_gpt2()
    for name in ("base", "ft"):
        model.save_pretrained(tmp_path / name)
    whole = open_checkpoint(tmp_path / "base")
    bare = open_checkpoint(strip(tmp_path / "base", "transformer."))
    assert "h.0.attn.c_attn.weight" in bare.shapes
    base = base_of(model)
    resident = under_model_names(bare, base)
    assert list(resident.shapes) == list(whole.shapes)
    assert resident.digest == bare.digest
    files = load_file(tmp_path / "base" / "model.safetensors")
    for name in whole.shapes:
        assert torch.equal(resident.tensor(name), files[name.removeprefix("transformer.")])
    for source in (tmp_path / "ft", strip(tmp_path / "ft", "transformer.")):
        fitted, warnings = fit_checkpoint(open_checkpoint(source), base, resident)
        assert (warnings, list(fitted.shapes)) == ([], list(resident.shapes))


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    """Nobody can tell which of the two is meant, so both are named."""
    model = tiny_gpt2()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "ln_f.bias": torch.ones(16)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"twice.*ln_f\.bias.*transformer\.ln_f\.bias"):
        under_model_names(open_checkpoint(tmp_path), base_of(model))
