"""The engine, its transactions and its clock, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session

from service.errors import SettingsError

Clock = Callable[[], float]
_BUSY_SECONDS = 30


class Database:
    """Short transactions on one database.

    Args:
        url: SQLAlchemy URL of SQLite or PostgreSQL.
        clock: for tests. Otherwise SQLite asks this machine (the file is on it) and PostgreSQL is
            asked itself, so that leases do not depend on how well several machines' clocks agree.

    Raises:
        SettingsError: the URL cannot be used.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self.engine = make_engine(url)
        self._clock = clock

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes; on SQLite it takes the one write lock at its begin."""
        with (
            Session(
                self.engine.execution_options(trimtab_write=True), expire_on_commit=False
            ) as session,
            session.begin(),
        ):
            yield session

    def now(self, session: Session) -> float:
        """Seconds since 1970."""
        if self._clock is not None:
            return self._clock()
        if self.engine.dialect.name == "postgresql":
            return float(
                session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0
            )
        return time.time()

    def close(self) -> None:
        self.engine.dispose()


def make_engine(url: str) -> Engine:
    """Raises SettingsError where the URL cannot be used."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            return _sqlite(url)
        if backend == "postgresql":
            return create_engine(
                parsed,
                json_serializer=_dumps,
                pool_pre_ping=True,
                connect_args={"connect_timeout": 10},
            )
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingsError(f"database_url: {error}") from error
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"database_url needs {error.name}; install it with `pip install trimtab[postgres]`"
        ) from error
    raise SettingsError(f"database_url: {backend} is not supported; use sqlite or postgresql")


def _sqlite(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise SettingsError("database_url: drivers are processes of their own; SQLite needs a file")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, json_serializer=_dumps, connect_args={"timeout": _BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # Python's sqlite3 begins transactions too late to lock before the first read; we begin
        # them.
        connection.isolation_level = None
        cursor = connection.cursor()
        # With NORMAL the last commits would be lost when the machine goes down.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("trimtab_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _dumps(value: Any) -> str:
    return json.dumps(finite(value), allow_nan=False)


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity; both become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
