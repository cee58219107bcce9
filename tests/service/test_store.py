"""The store's contract on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from benchmarks.postgres_server import NoPostgres, execute, own_postgres
from service.contract import SPEC, StoreContract, trial
from service.database import Database
from service.errors import SettingsError
from service.migrations import at_head, config, migrate
from service.store import Store
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


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a server of our own, without the database's name."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(own_postgres(durable=False))
        except NoPostgres as error:
            pytest.skip(str(error))
        execute(url, "CREATE DATABASE migrated")
        migrate_new(f"{url}/migrated")
        yield url


class TestPostgres(StoreContract):
    @pytest.fixture
    def url(self, postgres: str) -> str:
        name = f"test{next(_names)}"
        execute(postgres, f"CREATE DATABASE {name} TEMPLATE migrated")
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


def test_jobs_of_the_first_version_go_on_after_the_migration(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'db'}")
    migrate(store.database.engine)
    job = store.create(SPEC).job.id
    lease = store.claim(job, store.start_attempt(job, 60), "driver", 60)
    store.record_trials(lease, [trial(0)])
    made = config()
    with store.database.engine.connect() as connection:
        made.attributes["connection"] = connection
        command.downgrade(made, "0001")
        connection.commit()
    assert not at_head(store.database.engine)
    migrate(store.database.engine)
    # Nobody wrote down when that driver began.
    assert store.worked(job, 2) == 0
    store.renew(lease, 60)
    store.record_trials(lease, [trial(1)])
    store.close()


@pytest.mark.parametrize(
    "url", ["sqlite://", "mysql://x/y", "no url", "oracle+nothing://x", "sqlite:///:memory:"]
)
def test_a_database_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        Database(url)
