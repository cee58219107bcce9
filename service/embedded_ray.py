"""A Ray head of our own on this machine, in processes that outlive the server.

A ``kill -9`` of the server leaves Ray and the running jobs alone; the next server finds them by the
record in the data directory. Ray's Jobs API runs any code for whoever reaches it, so it is bound to
loopback and asks for a token.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import psutil

from service.errors import RuntimeUnavailable
from service.ray_runtime import RayAccess

_START_SECONDS = 90.0
_STOP_SECONDS = 15.0
_TRIES = 3
_HEALTHY_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayHead:
    """A running head.

    Attributes:
        pid, born: of the process that keeps all others; ``born`` tells it from a later one of that
            number.
        url: of the dashboard.
        address: of the cluster, for ``ray.init`` and workers.
        temp_dir: Ray's sockets and logs.
        family: ``(pid, born)`` of its processes, drivers and workers too, as last seen: what is to
            be ended when the head itself has died.
    """

    pid: int
    born: float
    url: str
    address: str
    temp_dir: str
    family: tuple[tuple[int, float], ...] = ()

    @property
    def alive(self) -> bool:
        return _process(self.pid, self.born) is not None

    def processes(self) -> list[psutil.Process]:
        """Those of the recorded processes that live, with their children; the head comes first."""
        found: dict[int, psutil.Process] = {}
        for pid, born in ((self.pid, self.born), *self.family):
            process = _process(pid, born)
            if process is None:
                continue
            found[pid] = process
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in process.children(recursive=True)}
        return list(found.values())


class EmbeddedRay:
    """Starts the head once and finds it again.

    Args:
        folder: record, token and log.
        dashboard_port: the next free one is taken when it is in use.
        num_cpus: cores Ray may use.
    """

    def __init__(self, folder: Path, dashboard_port: int, num_cpus: int) -> None:
        self._folder = folder
        self._port = dashboard_port
        self._num_cpus = num_cpus
        self._record = folder / "head.json"
        self._healthy_until = 0.0
        self._head: RayHead | None = None

    @property
    def token(self) -> str:
        """The token of the dashboard and the cluster, made when there is none."""
        path = self._folder / "token"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
        return path.read_text().strip()

    def access(self) -> RayAccess:
        """The dashboard of a head that answers; starts one where none does."""
        return RayAccess(self.ensure().url, self.token)

    def ensure(self) -> RayHead:
        """Raises RuntimeUnavailable when Ray does not start."""
        head = self._head or self._recorded()
        if head is not None and head.alive:
            # Asked before every look at a job; once in a while is enough for the dashboard itself.
            if time.monotonic() < self._healthy_until or self._answers(head.url):
                return self._keep(head)
            _log.warning("Ray at %s does not answer; starting it anew", head.url)
        if head is not None:
            self._head = head
            self.stop()
        return self._keep(self._start())

    def stop(self) -> None:
        """Ends the recorded head and its processes, and nothing else."""
        head = self._head or self._recorded()
        self._head, self._healthy_until = None, 0.0
        self._record.unlink(missing_ok=True)
        if head is None:
            return
        family = head.processes()
        if head.alive:
            # It ends its own processes in their order.
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(head.pid).terminate()
            _, family = psutil.wait_procs(family, _STOP_SECONDS)
        for survivor in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(family, _STOP_SECONDS)
        shutil.rmtree(head.temp_dir, ignore_errors=True)

    def _keep(self, head: RayHead) -> RayHead:
        """Remembers a head that answers, and now and then its processes."""
        if time.monotonic() >= self._healthy_until:
            self._healthy_until = time.monotonic() + _HEALTHY_SECONDS
            family = []
            for process in head.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    family.append((process.pid, process.create_time()))
            head = replace(head, family=tuple(sorted(family)))
            self._write(head)
        self._head = head
        return head

    def _write(self, head: RayHead) -> None:
        fresh = self._record.with_suffix(".part")
        fresh.write_text(json.dumps(asdict(head)))
        fresh.replace(self._record)

    def _recorded(self) -> RayHead | None:
        try:
            found = json.loads(self._record.read_text())
            found["family"] = tuple((int(pid), float(born)) for pid, born in found["family"])
            return RayHead(**found)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _start(self) -> RayHead:
        """A new head that answers. Another program may take a port between our look and Ray's: then with new ports."""
        for _ in range(_TRIES):
            if (head := self._begun()) is not None:
                return head
            _log.warning("Ray ended while it started; its log is %s", self._log_path)
        raise RuntimeUnavailable(f"Ray did not start; its log is {self._log_path}")

    @property
    def _log_path(self) -> Path:
        return self._folder / "head.log"

    def _begun(self) -> RayHead | None:
        """A new head; None where its process ended by itself."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Ray puts its working folder on the workers' import path: let it be an empty one.
        empty = self._folder / "empty"
        empty.mkdir(exist_ok=True)
        # Not in our folder: a socket's path has at most 107 characters.
        temp_dir = tempfile.mkdtemp(prefix="trimtab-ray-")
        port, *others = free_ports(6, first=self._port)
        gcs, client, agent, agent_grpc, metrics = others
        command = [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--num-cpus={self._num_cpus}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}"),
            # 0: the system gives free ports; Ray's fixed range collides with other clusters.
            *("--min-worker-port=0", "--max-worker-port=0"),
            *(f"--temp-dir={temp_dir}", "--disable-usage-stats"),
        ]
        self.token  # noqa: B018
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=empty,
                env=_environment(self._folder / "token"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        head = RayHead(
            process.pid,
            psutil.Process(process.pid).create_time(),
            f"http://127.0.0.1:{port}",
            f"127.0.0.1:{gcs}",
            temp_dir,
        )
        # Recorded before it is up, so that a server killed meanwhile does not leave it behind.
        self._write(head)
        self._head = head
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if self._answers(head.url):
                return head
            time.sleep(0.2)
        ended = process.poll() is not None
        self.stop()
        if ended:
            return None
        raise RuntimeUnavailable(
            f"Ray did not answer within {_START_SECONDS:.0f} s; its log is {self._log_path}"
        )

    def _answers(self, url: str) -> bool:
        try:
            response = httpx.get(
                f"{url}/api/version",
                headers={"Authorization": f"Bearer {self.token}"},
                timeout=5,
                trust_env=False,
            )
        except httpx.TransportError:
            return False
        return response.status_code == 200


def _environment(token: Path) -> dict[str, str]:
    """Ours without what drivers need not know, with Ray's token authentication on."""
    dropped = ("TRIMTAB_API_KEY", "TRIMTAB_DATABASE_URL", "RAY_ADDRESS", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A driver whose head has died ends after so many seconds instead of a minute.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
        # Where this is off Ray keeps to 127.0.0.1; otherwise it replaces a loopback address that it
        # is # given by the machine's own and listens on all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _process(pid: int, born: float) -> psutil.Process | None:
    """The recorded process, unless it has ended (its number may belong to another one by now)."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - born) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def free_ports(count: int, first: int) -> list[int]:
    """Free ports on loopback: the next free one from ``first`` on, then any."""
    ports: list[int] = []
    sockets: list[socket.socket] = []
    try:
        for port in range(first, min(first + 200, 65536)):
            held = _bind(port)
            if held is not None:
                sockets.append(held)
                ports.append(port)
                break
        while len(ports) < count:
            held = _bind(0)
            if held is None:
                raise RuntimeUnavailable("no free port on 127.0.0.1")
            sockets.append(held)
            ports.append(held.getsockname()[1])
    finally:
        for held in sockets:
            held.close()
    return ports


def _bind(port: int) -> socket.socket | None:
    held = socket.socket()
    try:
        held.bind(("127.0.0.1", port))
    except OSError:
        held.close()
        return None
    return held
