"""Alembic migrations, run when the server starts. They are package data: ``migrate`` needs no
alembic.ini.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

__all__ = ["at_head", "config", "migrate"]

# Any number will do, as long as no other program on the server uses it.
_LOCK = 7_461_001


def config() -> Config:
    """Alembic's configuration, pointing at this folder wherever it is installed."""
    made = Config()
    # Alembic reads "%" as interpolation.
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made


def migrate(engine: Engine) -> None:
    """Brings the database to the newest version; servers that start together wait for each
    other.
    """
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
            connection.commit()
        try:
            _upgrade(connection)
        finally:
            if connection.dialect.name == "postgresql":
                connection.rollback()
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_LOCK})")
                connection.commit()


def _upgrade(connection: Connection) -> None:
    made = config()
    made.attributes["connection"] = connection
    command.upgrade(made, "head")
    connection.commit()


def at_head(engine: Engine) -> bool:
    """True when the database is at the newest version."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head
