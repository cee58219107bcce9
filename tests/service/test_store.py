"""The store's contract on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from service.contract import StoreContract
from service.database import Database
from service.errors import SettingsError
from service.migrations import at_head, migrate
from service.tables import Base

_names = itertools.count()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at head; copying it is cheaper than migrating each time."""
    path = tmp_path_factory.mktemp("migrated") / "db"
    migrate_new(f"sqlite:///{path}")
    return path


def migrate_new(url: str) -> None:
    database = Database(url)
    migrate(database.engine)
    database.close()


class TestSqlite(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path, migrated: Path) -> str:
        return f"sqlite:///{shutil.copy(migrated, tmp_path / 'db')}"


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    where = shutil.which("initdb")
    return Path(where).resolve().parent if where else None


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a server of our own, without the database's name."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL binaries (apt-get install postgresql)")
    as_user: list[str] = []
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # Not pytest's folder: nobody could not look into it.
    folder = Path(tempfile.mkdtemp(prefix="trimtab-pg-"))
    if as_user:
        os.chown(folder, 65534, 65534)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    made = subprocess.run(
        [*as_user, binaries / "initdb", "-D", data, "-U", "trimtab", "-A", "trust", "-N"],
        capture_output=True,
        cwd=folder,
    )
    if made.returncode:
        shutil.rmtree(folder)
        pytest.skip(f"initdb fails here: {made.stderr.decode()[-200:]}")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(*as_user, binaries / "postgres", "-D", data, "-p", str(port), "-k", folder),
                *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        url = f"postgresql+psycopg://trimtab@127.0.0.1:{port}"
        _wait_for(url, server, folder / "log")
        _execute(url, "CREATE DATABASE migrated")
        migrate_new(f"{url}/migrated")
        yield url
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    engine = create_engine(f"{url}/postgres")
    deadline = time.monotonic() + 30
    while True:
        try:
            with engine.connect():
                break
        except Exception:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {log.read_text()[-500:]}")
            time.sleep(0.1)
    engine.dispose()


def _execute(url: str, command: str) -> None:
    engine = create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(command))
    engine.dispose()


class TestPostgres(StoreContract):
    @pytest.fixture
    def url(self, postgres: str) -> str:
        name = f"test{next(_names)}"
        _execute(postgres, f"CREATE DATABASE {name} TEMPLATE migrated")
        return f"{postgres}/{name}"


def test_the_migrations_make_the_tables_of_the_models(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'db'}")
    assert not at_head(database.engine)
    migrate(database.engine)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
    database.close()
    assert differences == []


@pytest.mark.parametrize(
    "url", ["sqlite://", "mysql://x/y", "no url", "oracle+nothing://x", "sqlite:///:memory:"]
)
def test_a_database_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        Database(url)
