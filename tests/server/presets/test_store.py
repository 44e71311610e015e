"""The store: rows in and out, transactions, compare and swap."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.errors import ConflictError
from server.presets.database import StoreError
from server.presets.record import PresetRecord, StoredRevision
from server.presets.store import Counter, PresetStore
from tests.server.presets.tiny import digest, preset

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path):
    store = PresetStore(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield store
    store.close()


def revision(number: int, name: str = "tutor", **fields) -> StoredRevision:
    """A revision made at noon plus its number of minutes."""
    at = NOON + timedelta(minutes=number)
    record = PresetRecord(
        document=preset(name, description=f"as of {number}"),
        revision=number,
        digest=digest("a"),
        state="ready",
        path="blend",
        author="ada",
        message=f"edit {number}",
        created_at=at,
        updated_at=at,
    )
    return StoredRevision(replace(record, **fields), {"math": digest("b")})


def add(store: PresetStore, *numbers: int, kept: int = 100) -> None:
    """Store revisions of tutor, in a transaction each."""
    for number in numbers:
        with store.writing() as writer:
            if number == 1:
                writer.create_preset(revision(1), after=0)
            else:
                writer.add_revision(revision(number), kept=kept)


def test_a_revision_comes_back_as_it_was_stored(store):
    """Document, sources, digest, texts and times survive the database."""
    add(store, 1)
    assert store.revision("tutor", 1) == revision(1)
    assert store.heads() == [revision(1)]


def test_heads_are_the_newest_revisions_by_name(store):
    """Of every preset the newest revision is loaded, sorted by name."""
    add(store, 1, 2, 3)
    with store.writing() as writer:
        writer.create_preset(revision(1, "coder"), after=0)
    assert [head.record.label for head in store.heads()] == ["coder@1", "tutor@3"]


def test_revisions_are_listed_newest_first(store):
    """The history of a preset starts with its newest revision, and is that preset's only."""
    add(store, 1, 2, 3)
    with store.writing() as writer:
        writer.create_preset(revision(1, "coder"), after=0)
    assert [stored.record.label for stored in store.revisions("tutor")] == [
        "tutor@3",
        "tutor@2",
        "tutor@1",
    ]


def test_every_row_knows_when_the_preset_last_changed(store):
    """`created_at` is the revision's own time, `updated_at` that of the preset's newest one."""
    add(store, 1, 2)
    old = store.revision("tutor", 1).record
    assert old.created_at == NOON + timedelta(minutes=1)
    assert old.updated_at == NOON + timedelta(minutes=2)


def test_old_revisions_are_pruned(store):
    """Adding a revision forgets those before the newest ones that are kept."""
    add(store, 1, 2, 3, 4, 5, kept=2)
    assert [stored.record.revision for stored in store.revisions("tutor")] == [5, 4]
    assert store.revision("tutor", 3) is None


def test_numbers_survive_a_deletion(store):
    """A deleted preset is not loaded, and its name goes on counting where it was."""
    add(store, 1, 2)
    with store.writing() as writer:
        writer.delete_preset("tutor", head=2, at=NOON)
    assert store.heads() == []
    assert store.revisions("tutor") == []
    assert store.counter("tutor") == Counter(first=1, head=2, deleted=True)
    with store.writing() as writer:
        writer.create_preset(revision(3), after=2)
    assert store.counter("tutor") == Counter(first=3, head=3, deleted=False)
    assert [stored.record.revision for stored in store.revisions("tutor")] == [3]


def test_a_name_that_was_never_used_has_no_counter(store):
    """Only names that were used have counted revisions."""
    assert store.counter("tutor") is None


@pytest.mark.parametrize("number", [2, 3, 5])
def test_a_revision_follows_the_stored_head(store, number):
    """A revision that does not follow the stored one was made beside another process: refused."""
    add(store, 1, 2, 3)
    with pytest.raises(ConflictError, match="another process"), store.writing() as writer:
        writer.add_revision(revision(number), kept=100)
    assert store.heads() == [revision(3)]


def test_a_preset_is_not_created_over_another(store):
    """Creating counts on the name being unused or deleted, in the database too."""
    add(store, 1)
    with pytest.raises(ConflictError), store.writing() as writer:
        writer.create_preset(revision(2), after=1)
    with pytest.raises(StoreError), store.writing() as writer:
        writer.create_preset(revision(1), after=0)
    assert store.heads() == [revision(1)]


def test_a_preset_is_not_deleted_at_another_head(store):
    """A deletion counts on the revision that it saw."""
    add(store, 1, 2)
    with pytest.raises(ConflictError), store.writing() as writer:
        writer.delete_preset("tutor", head=1, at=NOON)
    assert len(store.revisions("tutor")) == 2


def test_a_transaction_is_all_or_nothing(store):
    """What fails in a transaction undoes what went before it."""
    add(store, 1)

    def fail_halfway() -> None:
        with store.writing() as writer:
            writer.put_source("math", Path("/a"), digest("c"), at=NOON)
            writer.add_revision(revision(2), kept=100)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert store.heads() == [revision(1)]
    assert store.sources() == []


def test_building_is_stored_until_it_is_not(store):
    """That a revision is building outlives the process, until it is marked as built."""
    with store.writing() as writer:
        writer.create_preset(revision(1, state="building"), after=0)
    assert store.revision("tutor", 1) == revision(1, state="building")
    with store.writing() as writer:
        writer.mark_revision(revision(1).record)
    assert store.revision("tutor", 1) == revision(1)


def test_sources_come_back(store):
    """A source is stored with its path, digest and times; new content keeps when it was created."""
    later = NOON + timedelta(hours=1)
    with store.writing() as writer:
        writer.put_source("math", Path("/a"), digest("c"), at=NOON)
        writer.put_source("code", Path("/b"), digest("d"), at=NOON)
    with store.writing() as writer:
        writer.put_source("math", Path("/a2"), digest("e"), at=later)
    code, math = store.sources()
    assert (code.name, code.path, code.updated_at) == ("code", Path("/b"), NOON)
    assert (math.name, math.path, math.digest) == ("math", Path("/a2"), digest("e"))
    assert (math.created_at, math.updated_at) == (NOON, later)


def test_used_contents_are_those_that_something_names(store):
    """A content is in use while a kept revision or a source names it."""
    assert store.used_contents() == set()
    add(store, 1)
    with store.writing() as writer:
        writer.put_source("math", Path("/a"), digest("c"), at=NOON)
    assert store.used_contents() == {digest("b"), digest("c")}
    with store.writing() as writer:
        writer.delete_preset("tutor", head=1, at=NOON)
        writer.put_source("math", Path("/a"), digest("d"), at=NOON)
    assert store.used_contents() == {digest("d")}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_has_no_folder(url):
    """Only a database in a file has a folder for contents, and each file has its own."""
    store = PresetStore(url)
    assert store.contents_folder is None
    store.close()


def test_the_folder_of_contents_is_beside_the_database(store, tmp_path):
    """Databases in one folder do not share their contents."""
    assert store.contents_folder == tmp_path / "contents" / "catalog.db"


def test_errors_do_not_show_statements(store, caplog):
    """An error of the store is what the driver says; statement and values go to the log."""
    add(store, 1)
    with pytest.raises(StoreError) as caught, store.writing() as writer:
        writer.create_preset(revision(1), after=0)
    assert "UNIQUE constraint failed" in caught.value.message
    for part in ("INSERT", "tutor", "parameters", "sqlalche"):
        assert part not in caught.value.message
    assert "INSERT INTO presets" in caplog.text


def test_what_cannot_be_read_is_an_error_of_the_store(store, tmp_path):
    """A database that breaks while it is open gives an error that says so."""
    store.close()
    for file in tmp_path.glob("catalog.db*"):
        file.unlink()
    with pytest.raises(StoreError, match="could not be read"):
        store.heads()
