"""The database's schema and its history."""

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from server.presets.database import StoreError
from server.presets.migrations import migrate
from server.presets.store import PresetStore
from server.presets.tables import metadata
from tests.server.presets.tiny import digest

FIRST = "0001"


def at_first_revision(path: Path) -> str:
    """A database as the first release left it, with a preset in it."""
    url = f"sqlite:///{path}"
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection, FIRST)
    engine.dispose()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO presets VALUES ('tutor', 1, 3, 0, '2026-05-04 12:00:00.000000')"
        )
        connection.execute(
            "INSERT INTO revisions VALUES ('tutor', 3, ?, ?, ?, 'blend', 'ready', 'ada', 'hello', "
            "'2026-05-04 12:00:00.000000')",
            (
                '{"name": "tutor", "sources": {"math": {"weight": 0.5}}}',
                f'{{"math": "{digest("a")}"}}',
                digest("b"),
            ),
        )
    connection.close()
    return url


def tables_of(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {name for (name,) in rows}


def test_an_empty_database_is_brought_up_to_date(tmp_path):
    """Opening a database that does not exist makes it, with every table."""
    store = PresetStore(f"sqlite:///{tmp_path / 'deep' / 'catalog.db'}")
    store.close()
    assert set(metadata.tables) <= tables_of(tmp_path / "deep" / "catalog.db")


def test_a_database_at_the_first_revision_is_brought_up_to_date(tmp_path):
    """What the first release stored is read by this one."""
    store = PresetStore(at_first_revision(tmp_path / "catalog.db"))
    (head,) = store.heads()
    store.close()
    assert head.record.label == "tutor@3"
    assert head.record.document.sources == {"math": {"weight": 0.5}}
    assert head.sources == {"math": digest("a")}


def test_opening_twice_changes_nothing(tmp_path):
    """Migrations that have run do not run again."""
    url = at_first_revision(tmp_path / "catalog.db")
    for _ in range(2):
        store = PresetStore(url)
        assert len(store.heads()) == 1
        store.close()


def test_migrations_and_tables_agree(tmp_path):
    """The schema that the migrations make is the one that the code declares."""
    engine = create_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    with engine.begin() as connection:
        migrate(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    """A schema that this version does not know is not touched, and the error says why."""
    url = at_first_revision(tmp_path / "catalog.db")
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreError, match="made by another version of mergeserve"):
        PresetStore(url)
