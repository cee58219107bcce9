"""A real HTTP server on a real SQLite file, without a runtime."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from service.app import create_app
from service.client import Client
from service.migrations import migrate
from service.services import Services
from service.settings import Settings
from service.store import Store

SPEC: dict[str, Any] = {
    "name": "digits",
    "model": {"source": "python:service.demo_networks:digits_cnn"},
    "data": {"source": "digits"},
    "target": "x86-ort",
    "budget": {"latency": 0.5},
    "agent": {"name": "random", "evaluations": 8, "seed": 0},
}


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str
    services: Services
    http: httpx.Client

    @property
    def store(self) -> Store:
        return self.services.store

    def client(self, api_key: str | None = None) -> Client:
        return Client(self.url, api_key, patience=1)

    def snapshot(self) -> dict[str, list[Any]]:
        """All rows of the database and all files, to show that nothing changed."""
        with self.store.database.engine.connect() as connection:
            names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type='table'")
            tables = {
                name: [tuple(row) for row in connection.exec_driver_sql(f'SELECT * FROM "{name}"')]
                for (name,) in names.all()
            }
        data = self.services.settings.data_dir
        files = [
            str(path.relative_to(data))
            for path in sorted(data.rglob("*"))
            if path.is_file() and "sqlite3" not in path.name and path.name != "driver.json"
        ]
        return tables | {"files": files}


@contextmanager
def serving(data_dir: Path, **given: Any) -> Iterator[Running]:
    """Runs the application in a thread."""
    settings = Settings.load({}, data_dir=data_dir, **given)
    store = Store.open(settings.database_url)
    migrate(store.database.engine)
    services = Services.of(settings, store)
    config = uvicorn.Config(
        create_app(services), host="127.0.0.1", port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        yield Running(url, services, http)
    services.stopping = True
    server.should_exit = True
    thread.join(20)
    store.close()
