"""A PostgreSQL server of our own for as long as a test or a benchmark needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

_SECONDS = 30.0


class NoPostgres(Exception):
    """There is no PostgreSQL on this machine, or it does not start; says why."""


@contextlib.contextmanager
def own_postgres(durable: bool) -> Iterator[str]:
    """Starts a server on a free port and an empty folder; both are gone afterwards.

    Args:
        durable: a commit reaches the disk before it returns, as everywhere but in tests.

    Returns:
        SQLAlchemy URL without the database's name.

    Raises:
        NoPostgres: see there.
    """
    binaries = _binaries()
    if binaries is None:
        raise NoPostgres("no PostgreSQL binaries (apt-get install postgresql)")
    as_user: list[str] = []
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        if shutil.which("setpriv") is None:
            raise NoPostgres("PostgreSQL does not run as root, and there is no setpriv")
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # Under /tmp, where that user may look into it, and short: a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="trimtab-pg-"))
    server: subprocess.Popen[bytes] | None = None
    try:
        if as_user:
            os.chown(folder, 65534, 65534)
        data, log = folder / "data", folder / "log"
        made = subprocess.run(
            [*as_user, binaries / "initdb", "-D", data, "-U", "trimtab", "-A", "trust", "-N"],
            capture_output=True,
            cwd=folder,
        )
        if made.returncode:
            raise NoPostgres(f"initdb fails here: {made.stderr.decode()[-200:]}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [*as_user, binaries / "postgres", "-D", data, "-p", str(port), "-k", folder]
        command += ["-c", "listen_addresses=127.0.0.1"]
        command += ["-c", f"fsync={'on' if durable else 'off'}"]
        with log.open("wb") as output:
            server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        url = f"postgresql+psycopg://trimtab@127.0.0.1:{port}"
        _wait_for(url, server, log)
        yield url
    finally:
        if server is not None:
            # Fast shutdown: the polite one waits for connections that are still open.
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def execute(url: str, command: str) -> None:
    """Runs a command such as ``CREATE DATABASE`` outside of a transaction."""
    engine = create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(command))
    finally:
        engine.dispose()


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    where = shutil.which("initdb")
    return Path(where).resolve().parent if where else None


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            execute(url, "SELECT 1")
            return
        except SQLAlchemyError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise NoPostgres(f"PostgreSQL did not start: {log.read_text()[-500:]}") from None
            time.sleep(0.1)
