"""The catalog's memory: presets, revisions and sources in SQL. Knows rows, and no weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from platformdirs import user_cache_path
from sqlalchemy import Connection, RowMapping, Select, select, text
from sqlalchemy.exc import SQLAlchemyError

from server.presets import tables
from server.presets.database import StoreError, driver_text, open_database
from server.presets.document import PresetDocument
from server.presets.record import PresetRecord, StoredRevision
from server.presets.store_writer import StoreWriter


@dataclass(frozen=True, slots=True)
class Counter:
    """The revision numbers of a name: `first` of its present life, and `head`, the newest ever."""

    first: int
    head: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A source as the database keeps it."""

    name: str
    path: Path
    digest: str
    created_at: datetime
    updated_at: datetime
    parent: str | None = None


class PresetStore:
    """Presets, revisions and sources in the database at `url`, which is migrated on opening."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)

    @property
    def contents_folder(self) -> Path | None:
        """The folder for sources' contents, beside the database; None if that is in memory."""
        database = self._engine.url.database
        if not database or database == ":memory:":
            return None
        path = Path(database).absolute()
        return path.parent / "contents" / path.name  # other databases may be in the same folder

    @property
    def dense_folder(self) -> Path:
        """The folder for dense deltas, beside the contents; of a database in memory the user's."""
        contents = self.contents_folder
        if contents is None:
            return user_cache_path("mergeserve") / "dense"
        return contents.parent.parent / "dense" / contents.name

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[StoreWriter]:
        """One transaction: all of it is on disk when the block ends, or none of it ever is."""
        try:
            with self._engine.execution_options(immediate=True).begin() as connection:
                yield StoreWriter(connection)
        except SQLAlchemyError as error:
            raise StoreError(
                f"the edit could not be saved, nothing changed: {driver_text(error)}"
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the database could not be read: {driver_text(error)}") from error

    def heads(self) -> list[StoredRevision]:
        """The newest revision of every preset, by name."""
        query = _revisions().where(
            tables.revisions.c.revision == tables.presets.c.head,
            tables.presets.c.deleted.is_(False),
        )
        with self._reading() as connection:
            rows = connection.execute(query.order_by(tables.presets.c.name)).mappings().all()
        return [_stored_revision(row) for row in rows]

    def revisions(self, name: str) -> list[StoredRevision]:
        """The kept revisions of a preset, newest first."""
        query = _revisions().where(tables.presets.c.name == name)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(tables.revisions.c.revision.desc()))
            return [_stored_revision(row) for row in rows.mappings().all()]

    def revision(self, name: str, revision: int) -> StoredRevision | None:
        """One kept revision."""
        query = _revisions().where(
            tables.presets.c.name == name, tables.revisions.c.revision == revision
        )
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _stored_revision(row)

    def counter(self, name: str) -> Counter | None:
        """The revision numbers that a name has used; None if it was never used."""
        table = tables.presets
        query = select(table.c.first, table.c.head, table.c.deleted).where(table.c.name == name)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else Counter(*row)

    def sources(self) -> list[StoredSource]:
        """Every registered source, by name."""
        with self._reading() as connection:
            rows = connection.execute(select(tables.sources).order_by(tables.sources.c.name)).all()
        return [StoredSource(row[0], Path(row[1]), *row[2:]) for row in rows]

    def used_contents(self) -> frozenset[str]:
        """Digests of the contents that a kept revision or a source names."""
        query = text(
            "SELECT value FROM revisions, json_each(revisions.sources) "
            "UNION SELECT digest FROM sources"
        )
        with self._reading() as connection:
            return frozenset(connection.execute(query).scalars())


def _revisions() -> Select[*tuple[object, ...]]:
    presets, revisions = tables.presets, tables.revisions
    query = select(revisions, presets.c.updated_at)
    return query.join(presets, revisions.c.preset == presets.c.name)


def _stored_revision(row: RowMapping) -> StoredRevision:
    record = PresetRecord(
        document=PresetDocument.model_validate_json(row["document"]),
        revision=row["revision"],
        digest=row["digest"],
        state=row["state"],
        reasons=tuple(row["reasons"] or ()),
        path=row["path"],
        author=row["author"],
        message=row["message"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
    sources: Mapping[str, str] = row["sources"]
    return StoredRevision(record, sources)
