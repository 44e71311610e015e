"""Recipes in files, mergekit's and native ones."""

from pathlib import Path

import pytest

from merging.errors import RecipeError
from server.offline.recipe_file import RecipeFile, read_recipe_file

PATH = Path("recipe.yaml")


def test_models_of_a_mergekit_recipe() -> None:
    """Wherever they stand, in all of mergekit's forms, in their order and each once."""
    content = {
        "merge_method": "passthrough",
        "base_model": {"model": {"path": "org/base"}},
        "slices": [
            {"sources": [{"model": "b", "layer_range": [0, 1]}]},
            {"sources": [{"model": {"path": "a", "revision": "v1"}, "layer_range": [0, 1]}]},
            {"sources": [{"model": {"model": "c", "lora": "d"}, "layer_range": [0, 1]}]},
        ],
        "modules": {"x": {"models": [{"model": "b", "parameters": {"model": "no"}}]}},
        "tokenizer": {"source": "base", "tokens": {"t": {"source": {"model": "no"}}}},
    }
    file = RecipeFile(PATH, content)
    assert file.is_mergekit
    assert file.base_model == "org/base"
    assert file.models == ["org/base", "b", "a@v1", "c+d"]


def test_models_of_a_native_document() -> None:
    """Its sources; its base is the resident one unless it says otherwise."""
    file = RecipeFile(PATH, {"method": "linear", "sources": {"y": {}, "x": {}}})
    assert (file.base_model, file.models) == ("base", ["y", "x"])
    assert RecipeFile(PATH, {"method": "linear", "base_model": None}).base_model is None


def test_a_preset_is_a_recipe() -> None:
    """What GET gives can be merged: fields that do not decide weights are dropped; unknown ones are
    refused, all of them.
    """
    fields = {"method": "linear", "sources": {"x": {}}, "seed": 3}
    more = {"name": "tutor", "mode": "merge", "revision": 7, "digest": "sha256:0"}
    assert RecipeFile(PATH, fields | more).native() == fields
    with pytest.raises(RecipeError) as caught:
        RecipeFile(PATH, fields | {"wheight": 1, "sead": 2}).native()
    assert len(caught.value.reasons) == 2


def test_a_bare_number_is_a_weight() -> None:
    """As over HTTP."""
    file = RecipeFile(PATH, {"method": "linear", "sources": {"x": 0.5}})
    assert file.native()["sources"] == {"x": {"weight": 0.5}}


def test_json_is_read_too(tmp_path: Path) -> None:
    """It is YAML."""
    path = tmp_path / "recipe.json"
    path.write_text('{"method": "linear", "sources": {"x": {"weight": 1e-3}}}')
    assert read_recipe_file(path).models == ["x"]
