"""Opening the database: durable SQLite connections, explicit transactions, schema up to date."""

import logging
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError, StatementError

from server.errors import UnavailableError
from server.presets.migrations import migrate

logger = logging.getLogger(__name__)

BUSY_TIMEOUT = 10_000  # milliseconds that a statement waits for another process's lock

PRAGMAS = (
    f"busy_timeout={BUSY_TIMEOUT}",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
)


class StoreError(UnavailableError):
    """The database cannot be read or written."""

    code = "store_failed"


def driver_text(error: SQLAlchemyError | OSError) -> str:
    """What the driver says is wrong: without the statement and its values, which go to the log."""
    logger.error("%s", error)
    if isinstance(error, StatementError):
        return str(error.orig)
    return str(error)


def open_database(url: str) -> Engine:
    """Connect to `url` and migrate its schema; StoreError if it cannot be used."""
    try:
        engine = _create_engine(url)
        _migrate(engine)
    except CommandError as error:
        raise StoreError(
            f"the database {url} was made by another version of mergeserve ({error}): "
            "use that version, or another --database-url"
        ) from error
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(f"the database {url} cannot be opened: {driver_text(error)}") from error
    return engine


def _migrate(engine: Engine) -> None:
    try:
        with engine.execution_options(immediate=True).begin() as connection:
            migrate(connection)
    except BaseException:
        engine.dispose()
        raise


def _create_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"{url!r} is not a database URL such as sqlite:///PATH") from error
    if parsed.get_backend_name() != "sqlite":
        raise StoreError(f"{url!r} is not supported: give sqlite:///PATH as --database-url")
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed)
    else:  # for tests: one connection, which is the database, lent to one thread at a time
        engine = create_engine(
            parsed,
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            connect_args={"check_same_thread": False},
        )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
    cursor = connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a reader's lock later can fail without waiting.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
