"""What a model is called on a hub."""

import json
from pathlib import Path

import pytest

from server.engine.hub_id import find_hub_id


def test_a_model_that_was_asked_for_by_its_id(tmp_path: Path) -> None:
    """The id is the one that was asked for, whatever its folder records."""
    (tmp_path / "config.json").write_text('{"_name_or_path": "other/name"}')
    assert find_hub_id("org/model", tmp_path) == "org/model"


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ("org/model", "org/model"),
        ("/some/where/model", None),
        ("./org/model", None),
        ("model", None),
        ("a/b/c", None),
        (7, None),
        (None, None),
    ],
)
def test_a_folder_may_record_it(tmp_path: Path, recorded: object, expected: str | None) -> None:
    """Paths are no ids."""
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": recorded}))
    assert find_hub_id(tmp_path, tmp_path) == expected


@pytest.mark.parametrize("content", ["", "[]", None])
def test_nothing_is_recorded(tmp_path: Path, content: str | None) -> None:
    """Without a config, or with a broken one, nothing is known; whoever loads it says what is
    wrong.
    """
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert find_hub_id(tmp_path, tmp_path) is None


def test_a_path_that_looks_like_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path to a folder that is there is no id."""
    (tmp_path / "out" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"_name_or_path": "out/model"}')
    assert find_hub_id("out/model", tmp_path) is None
