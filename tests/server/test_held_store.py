"""The database of a server: its own, and no other server's meanwhile."""

import logging

import pytest

from server.held_store import hold_store
from server.presets.database import StoreError
from server.settings import Settings
from tests.server.presets.test_database_choice import OTHER, OURS, database


def test_two_servers_on_one_database(tmp_path):
    """The second one is refused at its start, until the first has ended."""
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'presets.db'}")
    first = hold_store(settings, OURS)
    with pytest.raises(StoreError, match="run one server on each"):
        hold_store(settings, OURS)
    first.close()
    hold_store(settings, OURS).close()


def test_a_database_of_another_base_is_told(tmp_path, caplog):
    """A database that was named and made for another base is taken, and the log says so."""
    path = database(tmp_path / "presets.db", OTHER)
    with caplog.at_level(logging.WARNING):
        hold_store(Settings(database_url=f"sqlite:///{path}"), OURS).close()
    assert "was made for another base" in caplog.text
    caplog.clear()
    hold_store(Settings(database_url=f"sqlite:///{path}"), OTHER).close()
    assert "another base" not in caplog.text


def test_a_new_database_is_begun(tmp_path):
    """--new-database keeps the old one beside."""
    path = database(tmp_path / "presets.db")
    held = hold_store(Settings(database_url=f"sqlite:///{path}", new_database=True), OURS)
    assert held.store.heads() == []
    held.close()
    assert len(list(tmp_path.glob("presets.db.2*"))) == 1


def test_one_in_memory_is_nobody_elses():
    """It needs no lock."""
    settings = Settings(database_url="sqlite:///:memory:")
    for held in [hold_store(settings, OURS), hold_store(settings, OURS)]:
        held.close()
