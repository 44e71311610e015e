"""Which database is a base's own."""

import logging
from pathlib import Path

import pytest

from server.presets.catalog import Catalog, Edit
from server.presets.database_choice import database_of, is_made_for
from server.presets.store import PresetStore
from tests.server.presets.tiny import OPEN_POLICY, preset, tiny_base, write_adapter

OURS, OTHER = tiny_base(character="a"), tiny_base(character="b")


def database(path: Path, base=OURS, names=("tutor",)) -> Path:
    """A database that a server of this base left."""
    store = PresetStore(f"sqlite:///{path}")
    catalog = Catalog(store, base, policy=OPEN_POLICY)
    catalog.load()
    catalog.add_source("math", write_adapter(path.parent / "math", 1))
    for name in names:
        catalog.create(preset(name), edit=Edit())
    catalog.close()
    store.close()
    return path


def test_it_is_chosen_by_content(tmp_path):
    """Bases of one name have databases of their own, and a base keeps its own under any name."""
    chosen = database_of(OURS, tmp_path)
    assert database_of(OTHER, tmp_path) != chosen
    assert database_of(tiny_base("renamed", "a"), tmp_path) == chosen
    assert chosen.name == f"base-{'a' * 16}.db"


def test_a_database_of_the_name_is_gone_on_with(tmp_path):
    """What an older version called by the base's name is found, if its presets are of this base."""
    old = database(tmp_path / "tiny.db")
    assert database_of(OURS, tmp_path) == old


def test_a_database_of_another_base_is_passed_over(tmp_path, caplog):
    """The presets of another base of the same name are not inherited; the log says which file was
    passed over, and why.
    """
    old = database(tmp_path / "tiny.db", OTHER)
    with caplog.at_level(logging.WARNING):
        assert database_of(OURS, tmp_path) == tmp_path / f"base-{'a' * 16}.db"
    assert str(old) in caplog.text
    assert OURS.digest in caplog.text
    assert "--database-url" in caplog.text


def test_what_is_chosen_once_stays(tmp_path):
    """A database by content goes before one by name."""
    database(tmp_path / "tiny.db")
    new = tmp_path / f"base-{'a' * 16}.db"
    new.touch()
    assert database_of(OURS, tmp_path) == new


def test_whose_presets_it_holds(tmp_path):
    """The digest of a revision tells the base, in whatever dtype; without one nothing is told."""
    assert is_made_for(database(tmp_path / "a.db"), OURS) is True
    assert is_made_for(tmp_path / "a.db", OTHER) is False
    assert is_made_for(database(tmp_path / "b.db", names=()), OURS) is None


@pytest.mark.parametrize("content", [b"", b"no database"])
def test_a_file_that_is_no_database(tmp_path, content, caplog):
    """A file that cannot be read is passed over, and is left as it is."""
    path = tmp_path / "tiny.db"
    path.write_bytes(content)
    assert database_of(OURS, tmp_path) != path
    assert path.read_bytes() == content
    assert "tiny.db" in caplog.text
