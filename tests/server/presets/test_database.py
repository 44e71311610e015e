"""Opening the database."""

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from server.presets.database import StoreError, open_database


def test_connections_are_durable(tmp_path):
    """Every connection writes ahead, syncs fully, checks foreign keys, and waits for locks."""
    engine = open_database(f"sqlite:///{tmp_path / 'catalog.db'}")
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            pragmas = [
                connection.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]
            assert pragmas == ["wal", 2, 1, 10_000]
    engine.dispose()


def test_foreign_keys_are_enforced(tmp_path):
    """A revision without its preset cannot be stored."""
    engine = open_database(f"sqlite:///{tmp_path / 'catalog.db'}")
    statement = text("INSERT INTO revisions VALUES ('x', 1, '', '{}', '', '', '', '', '', '', '')")
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), engine.begin() as connection:
        connection.execute(statement)
    engine.dispose()


def test_a_writer_holds_its_lock_from_the_start(tmp_path):
    """A transaction that will write excludes other writers at once, and no readers."""
    engine = open_database(f"sqlite:///{tmp_path / 'catalog.db'}")
    writer_engine = engine.execution_options(immediate=True)
    order: list[str] = []

    def second_writer() -> None:
        with writer_engine.begin():
            order.append("second")

    with writer_engine.begin() as connection:
        thread = threading.Thread(target=second_writer)
        thread.start()
        with engine.connect() as reader:
            assert reader.execute(text("SELECT count(*) FROM presets")).scalar() == 0
        connection.execute(text("INSERT INTO presets VALUES ('a', 1, 1, 0, '')"))
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("catalog.db", "not a database URL such as sqlite:///PATH"),
        ("postgresql://host/db", "not supported: give sqlite:///PATH"),
        ("", "not a database URL"),
    ],
)
def test_urls_that_cannot_be_used(url, words):
    """A URL of another kind is refused with the kind to give."""
    with pytest.raises(StoreError, match=words):
        open_database(url)


def test_a_file_that_is_no_database(tmp_path):
    """A file of something else is refused and left as it is."""
    path = tmp_path / "catalog.db"
    path.write_text("these are not the bytes of a database" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_database(f"sqlite:///{path}")
    assert path.read_text().startswith("these are not")


def test_a_folder_that_cannot_be_made(tmp_path):
    """A path below a file is refused, with the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be opened"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'catalog.db'}")


def test_in_memory_threads_take_turns():
    """A database in memory is one connection, lent to one thread at a time."""
    engine = open_database("sqlite://")
    statement = text("INSERT INTO presets VALUES (:key, 1, 1, 0, '')")

    def write(key: str) -> None:
        for number in range(20):
            with engine.begin() as connection:
                connection.execute(statement, {"key": f"{key}{number}"})

    threads = [threading.Thread(target=write, args=(key,)) for key in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM presets")).scalar() == 80
    engine.dispose()
