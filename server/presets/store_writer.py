"""The writes of one transaction. Each refuses to build on rows that another process has changed."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, bindparam, delete, insert, update
from sqlalchemy.dialects.sqlite import insert as upsert

from server.errors import ConflictError
from server.presets import tables
from server.presets.record import PresetRecord, StoredRevision

# The statements of an edit are made once: making them takes longer than running them.
_MOVE = update(tables.presets).where(
    tables.presets.c.name == bindparam("of"),
    tables.presets.c.head == bindparam("old_head"),
    tables.presets.c.deleted == bindparam("was_deleted"),
)
_INSERT = insert(tables.revisions)
_FORGET = delete(tables.revisions).where(
    tables.revisions.c.preset == bindparam("of"),
    tables.revisions.c.revision <= bindparam("last"),
)


class StoreWriter:
    """Writes on a connection that is in a transaction; whoever opened it commits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create_preset(self, stored: StoredRevision, *, after: int) -> None:
        """Add the first revision of a preset. `after` is the newest number that the name used."""
        record, table = stored.record, tables.presets
        values = {
            "first": record.revision,
            "head": record.revision,
            "deleted": False,
            "updated_at": record.updated_at,
        }
        if after == 0:
            self._connection.execute(insert(table).values(name=record.name, **values))
        else:
            self._move(record.name, after, deleted=True, values=values)
        self._insert(stored)

    def add_revision(self, stored: StoredRevision, *, kept: int) -> None:
        """Add the next revision of a preset, and forget those before the newest `kept`."""
        record = stored.record
        values = {"head": record.revision, "updated_at": record.updated_at}
        self._move(record.name, record.revision - 1, deleted=False, values=values)
        self._insert(stored)
        self._connection.execute(_FORGET, {"of": record.name, "last": record.revision - kept})

    def delete_preset(self, name: str, *, head: int, at: datetime) -> None:
        """Forget a preset's revisions. Its row stays, so that no number is used again."""
        self._move(name, head, deleted=False, values={"deleted": True, "updated_at": at})
        self._connection.execute(delete(tables.revisions).where(tables.revisions.c.preset == name))

    def mark_revision(self, record: PresetRecord) -> None:
        """Note whether a revision that is stored could be built; nothing if it is not kept."""
        table = tables.revisions
        self._connection.execute(
            update(table)
            .where(table.c.preset == record.name, table.c.revision == record.revision)
            .values(
                state="failed" if record.state == "failed" else "ready",
                reasons=list(record.reasons),
            )
        )

    def put_source(
        self, name: str, path: Path, digest: str, parent: str | None = None, *, at: datetime
    ) -> None:
        """Register a source or give its name new content."""
        values = {"path": str(path), "digest": digest, "updated_at": at, "parent": parent}
        statement = upsert(tables.sources).values(name=name, created_at=at, **values)
        self._connection.execute(
            statement.on_conflict_do_update(index_elements=["name"], set_=values)
        )

    def delete_source(self, name: str) -> None:
        """Forget a source's name."""
        self._connection.execute(delete(tables.sources).where(tables.sources.c.name == name))

    def _move(self, name: str, head: int, *, deleted: bool, values: Mapping[str, object]) -> None:
        """Compare and swap a preset's row: it must still have this head."""
        of = {"of": name, "old_head": head, "was_deleted": deleted}
        moved = self._connection.execute(_MOVE, {**of, **values})
        if moved.rowcount != 1:
            raise ConflictError(
                f"the stored preset {name!r} is no longer at revision {head}: another process "
                "writes to this database; run one server on each"
            )

    def _insert(self, stored: StoredRevision) -> None:
        record = stored.record
        values = {
            "preset": record.name,
            "revision": record.revision,
            "document": record.document.model_dump_json(),
            "sources": dict(stored.sources),
            "digest": record.digest,
            "path": record.path,
            "state": record.state,
            "reasons": [],
            "author": record.author,
            "message": record.message,
            "created_at": record.created_at,
        }
        self._connection.execute(_INSERT, values)
