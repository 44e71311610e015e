"""What a source's folder says of its conversations, on a base with a way of its own."""

import json
from pathlib import Path

import pytest

from server.engine.source_conversation import read_conversation
from server.engine.tokenizer import Tokenizer
from tests.models import VOCAB_SIZE
from tests.tokenizers import byte_tokenizer

OWN = "<bos>{{ messages[0].content }}"


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return Tokenizer(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({2}))


def folder_with(folder: Path, template: str | None = None, **files: object) -> Path:
    """A folder with a tokenizer, if there is a template, and JSON files."""
    folder.mkdir(exist_ok=True)
    if template is not None:
        byte_tokenizer(template).save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_that_says_nothing(tmp_path, base) -> None:
    """A folder of weights alone, or one that says what the base says, is talked to as the base."""
    assert read_conversation(folder_with(tmp_path / "a"), base) == (None, ())
    same = folder_with(tmp_path / "b", base.conversation.template, config={"eos_token_id": 2})
    assert read_conversation(same, base) == (None, ())


def test_special_tokens_that_no_template_names(tmp_path, base) -> None:
    """Trainers set a padding token: where no template names it, that is no difference."""
    folder = folder_with(tmp_path / "a", base.conversation.template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<eos>"}))
    assert read_conversation(folder, base) == (None, ())


def test_a_template_of_its_own(tmp_path, base) -> None:
    """Its template counts, and the warning says where."""
    found, (warning,) = read_conversation(folder_with(tmp_path / "a", OWN, config={}), base)
    assert found is not None
    assert (found.template, found.eos_token_ids) == (OWN, {2})
    assert "a chat template of its own" in warning
    assert '"conversation"' in warning


def test_stop_tokens_of_its_own(tmp_path, base) -> None:
    """A checkpoint's stop tokens take the place of the base's; the warning has both."""
    files = {"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [2, 1]}}
    found, (warning,) = read_conversation(folder_with(tmp_path / "a", **files), base)
    assert found is not None
    assert (found.template, found.eos_token_ids) == (base.conversation.template, {1, 2})
    assert "'<bos>' (1), '<eos>' (2), where the base has '<eos>' (2)" in warning


def test_an_adapter_adds_its_stop_tokens(tmp_path, base) -> None:
    """A folder without a config.json, as trainers write adapters, keeps the base's stop tokens."""
    folder = folder_with(tmp_path / "a", OWN + "{{ eos_token }}")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found, _ = read_conversation(folder, base)
    assert found is not None
    assert found.eos_token_ids == {0, 2}
    assert found.special_tokens == {"eos_token": "<pad>"}


def test_stop_tokens_are_found_by_their_text(tmp_path, base) -> None:
    """A source with another vocabulary numbers its tokens otherwise: the base's numbers count, and
    a stop token that the base lacks is told.
    """
    tokenizer = byte_tokenizer(OWN)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.save_pretrained(tmp_path / "a")
    ids = [2, len(tokenizer) - 1]
    folder = folder_with(tmp_path / "a", config={"eos_token_id": ids})
    found, warnings = read_conversation(folder, base)
    assert found is not None
    assert found.eos_token_ids == {2}
    assert any("'<end>' are none of the base's tokens" in warning for warning in warnings)


def test_a_template_that_does_not_parse(tmp_path, base) -> None:
    """The base's template counts then, with a warning; its stop tokens are its own."""
    folder = folder_with(tmp_path / "a", "{% for %}", config={"eos_token_id": 1})
    found, warnings = read_conversation(folder, base)
    assert found is not None
    assert (found.template, found.eos_token_ids) == (base.conversation.template, {1, 2})
    assert any("its chat template cannot be used" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("name", "content"),
    [("generation_config.json", "{"), ("tokenizer.json", "[]"), ("tokenizer_config.json", "x")],
)
def test_files_that_cannot_be_read(tmp_path, base, name, content) -> None:
    """A source whose tokenizer files are damaged is talked to as the base is, with a warning."""
    folder = folder_with(tmp_path / "a", config={"eos_token_id": 1})
    (folder / name).write_text(content)
    found, (warning,) = read_conversation(folder, base)
    assert found is None
    assert "so that it is talked to as the base is" in warning
