"""The tokens that end an answer come from every file that names one."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from server.engine.errors import ModelLoadError
from server.engine.model_files import load_tokenizer
from server.engine.stop_tokens import known_tokens, stop_tokens_in_files
from tests.models import save_tiny_model, tiny_model


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 4}, {3, 4}),
        ({"eos_token_id": [3, 5]}, {}, {3, 5}),
        ({"eos_token_id": None}, {"eos_token_id": [4]}, {4}),
        ({}, {"text_config": {"eos_token_id": 6}}, {6}),
        ({}, {"eos_token_id": 4, "text_config": {"eos_token_id": [6, 7]}}, {4, 6, 7}),
        ({}, {"model_type": "llama"}, set()),
    ],
)
def test_files_are_added_up(tmp_path, generation_config, config, expected) -> None:
    """Both configs count, that of a text model inside another too; what they do not say is not
    taken from a class's defaults.
    """
    folder = write(tmp_path, generation_config=generation_config, config=config)
    assert stop_tokens_in_files(folder) == expected


@pytest.mark.parametrize("value", ["</s>", True, [2, "x"], 2.0, {}])
def test_what_is_no_id_is_refused_by_file(tmp_path, value) -> None:
    """A wrong value is named with its file."""
    folder = write(tmp_path, generation_config={"eos_token_id": value})
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id"):
        stop_tokens_in_files(folder)


def test_a_file_that_is_no_json_is_named(tmp_path) -> None:
    """A damaged file is named; a missing one is none."""
    assert stop_tokens_in_files(tmp_path) == frozenset()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        stop_tokens_in_files(tmp_path)


def test_ids_that_the_model_does_not_have_are_left_out(tmp_path, caplog) -> None:
    """-1 and ids beyond the vocabulary end nothing; the log says so."""
    assert known_tokens([2, -1, 300], 259, tmp_path) == {2}
    assert "the stop token 300" in caplog.text


def test_a_base_stops_at_the_tokens_of_tokenizer_and_configs(tmp_path) -> None:
    """A ChatML fine-tune names its end of turn in the tokenizer alone, and the base's end of text
    in its configs: both end an answer.
    """
    folder = save_tiny_model(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<bos>"
    tokenizer.save_pretrained(folder)
    write(folder, generation_config={"eos_token_id": [2, 77]})
    assert load_tokenizer(folder, tiny_model(), None).eos_token_ids == {1, 2, 77}
    write(folder, generation_config={"eos_token_id": "<eos>"})
    with pytest.raises(ModelLoadError, match="eos_token_id '<eos>'"):
        load_tokenizer(folder, tiny_model(), None)
