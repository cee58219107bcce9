"""``trimtab serve``: the REST application, the reconcile loop and, where wanted, a Ray of our
own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import uvicorn
from filelock import FileLock, Timeout

from service.app import create_app
from service.embedded_ray import EmbeddedRay
from service.errors import SettingsError
from service.migrations import migrate
from service.ray_runtime import RayAccess, RayRuntime
from service.reconcile import Reconciler
from service.services import Services
from service.settings import Settings
from service.store import Store

_log = logging.getLogger(__name__)
Say = Callable[[str], None]


def serve(settings: Settings, say: Say | None = None) -> None:
    """Runs the server until it is told to stop (SIGINT, SIGTERM).

    Jobs that run meanwhile are given up in good order: the next start goes on from their recorded
    trials.

    Raises:
        SettingsError: another server uses the data directory, the database cannot be used, or the
            port is taken.
        RuntimeUnavailable: Ray does not start.
    """
    say = say or _print
    _log_to_stderr()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with _alone(settings), _stops_by_signal(), contextlib.closing(_open(settings)) as store:
        services = Services.of(settings, store)
        config = uvicorn.Config(
            create_app(services),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            timeout_graceful_shutdown=3,
            # The Host header is checked: a proxy's word for it must not be taken.
            proxy_headers=False,
        )
        listener = _listen(settings)
        ray = EmbeddedRay(
            settings.data_dir / "ray", settings.ray_dashboard_port, settings.ray_num_cpus
        )
        try:
            with listener:
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                url = f"http://{host}:{listener.getsockname()[1]}"
                _run(settings, services, config, listener, ray, url, say)
        finally:
            if settings.ray_address == "embedded":
                ray.stop()
            (settings.data_dir / "server.json").unlink(missing_ok=True)


def _run(
    settings: Settings,
    services: Services,
    config: uvicorn.Config,
    listener: socket.socket,
    ray: EmbeddedRay,
    url: str,
    say: Say,
) -> None:
    access: Callable[[], RayAccess]
    if settings.ray_address == "embedded":
        access = ray.access
        say("starting Ray ...")
        found = ray.access()
    else:
        found = RayAccess(settings.ray_address)
        access = lambda: found  # noqa: E731
    runtime = RayRuntime(access, settings.write_driver_file())
    reconciler = Reconciler(
        services.store, runtime, services.blobs, settings.max_running_jobs, settings.max_attempts
    )
    stop = threading.Event()
    loop = threading.Thread(target=reconciler.run, args=(stop,), name="reconcile", daemon=True)
    record = {"pid": os.getpid(), "url": url, "dashboard": found.url}
    (settings.data_dir / "server.json").write_text(json.dumps(record))
    say(f"Trimtab        {url}  (API: {url}/docs)")
    say(f"Ray dashboard  {found.url}" + (f"  token {found.token}" if found.token else ""))
    loop.start()
    try:
        _Server(config, services).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        stop.set()
        loop.join(timeout=10)
        if settings.ray_address == "embedded":
            # Their drivers end with Ray.
            reconciler.release_all()


class _Server(uvicorn.Server):
    """Tells open event streams when the shutdown begins; uvicorn would wait for them."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._services.stopping = True
        super().handle_exit(sig, frame)


def _open(settings: Settings) -> Store:
    from sqlalchemy.exc import SQLAlchemyError

    store = Store.open(settings.database_url)
    try:
        migrate(store.database.engine)
    except SQLAlchemyError as error:
        store.close()
        reason = str(error).splitlines()[0]
        raise SettingsError(f"the database cannot be used: {reason}") from error
    return store


def _listen(settings: Settings) -> socket.socket:

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    listener.set_inheritable(False)
    return listener


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Two servers on one data directory would start and end each other's Ray."""
    lock = FileLock(settings.data_dir / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingsError(f"another server uses {settings.data_dir}") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _stops_by_signal() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C; uvicorn raises the signals it caught again when it is done."""

    def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("alembic", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
