"""One server on each database."""

import pytest

from server.presets.database import StoreError
from server.presets.database_lock import DatabaseLock


def test_a_second_server_is_refused(tmp_path):
    """The error names the file and says what to do."""
    path = tmp_path / "deep" / "presets.db"
    with (
        DatabaseLock(path),
        pytest.raises(StoreError, match=r"presets\.db: run one server on each"),
    ):
        DatabaseLock(path)


def test_it_is_free_afterwards(tmp_path):
    """Who has closed it does not hold it; other databases are never held."""
    with DatabaseLock(tmp_path / "a.db"), DatabaseLock(tmp_path / "b.db"):
        pass
    DatabaseLock(tmp_path / "a.db").close()


def test_it_cannot_be_made(tmp_path):
    """A place where nothing can be written is named."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be locked"):
        DatabaseLock(tmp_path / "file" / "a.db")


def test_a_database_is_set_aside_whole(tmp_path):
    """Its journal and the contents of its sources go with it, and nothing is lost."""
    path = tmp_path / "a.db"
    for name in ("a.db", "a.db-wal"):
        (tmp_path / name).write_text(name)
    (tmp_path / "contents" / "a.db").mkdir(parents=True)
    with DatabaseLock(path) as lock:
        aside = lock.set_aside()
        assert lock.set_aside() is None
    assert aside is not None
    assert not path.exists()
    assert aside.read_text() == "a.db"
    assert aside.with_name(f"{aside.name}-wal").read_text() == "a.db-wal"
    assert (tmp_path / "contents" / aside.name).is_dir()
