"""The tables of the catalog's database."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with a time zone, kept as naive UTC: SQLite knows no zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

presets = Table(
    "presets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("first", BigInteger, nullable=False),
    Column("head", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""One row for each name ever used: `head` counts its revisions, and outlives a deletion.

`first` is the first revision since the preset was last created.
"""

revisions = Table(
    "revisions",
    metadata,
    Column("preset", String(64), ForeignKey("presets.name"), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    Column("document", Text, nullable=False),
    Column("sources", JSON, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("path", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reasons", JSON, nullable=True),
    Column("author", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""The kept revisions. `sources` maps the names in the document to digests of their content.

`state` is "building" from an edit that nobody waits for until its revision serves, "failed", with
`reasons`, if it could not be built, and else "ready".
"""

sources = Table(
    "sources",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("path", Text, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("parent", String(64), nullable=True),
)
"""The registered sources. `parent` names the one that an adapter was trained on."""
