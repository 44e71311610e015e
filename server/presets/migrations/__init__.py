"""The history of the database's schema. `migrate` brings a database to its newest form."""

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def migrate(connection: Connection, revision: str = "head") -> None:
    """Run what is missing up to `revision`, in the transaction that `connection` is in."""
    config = Config()
    config.set_main_option("script_location", "server.presets:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
