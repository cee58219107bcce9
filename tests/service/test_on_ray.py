"""The whole service on one real Ray: server and drivers as processes, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import SPEC

from evaluation.errors import TuningError
from evaluation.pool import EvaluatorPool, ScorerFactory
from evaluation.pool_contract import WorkerPoolContract
from service.client import Client
from service.embedded_ray import EmbeddedRay, free_ports

HERE = Path(__file__).parent
SERVE = """
import json, sys
from service.server import serve
from service.settings import Settings
serve(Settings.load({}, **json.loads(sys.argv[1])))
"""
_SECONDS = 90.0


class Server:
    """``trimtab serve`` in a process of its own, with the pipeline of ``stand_in``."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        port, dashboard = free_ports(2, first=18500)
        self.settings = {
            "data_dir": str(data_dir),
            "port": port,
            "ray_dashboard_port": dashboard,
            "ray_num_cpus": 2,
            "evaluators": 2,
            "lease_seconds": 6,
            "code_paths": [str(HERE)],
            "pipeline": "stand_in:run_job",
        }
        self.client = Client(f"http://127.0.0.1:{port}", patience=20)
        self.log = data_dir / "server.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, json.dumps(self.settings)], stdout=log, stderr=log
            )
        self.until(self.client.ready)

    def until(self, met: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + _SECONDS
        while not (found := met()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return found

    def submit(self, name: str, evaluations: int = 3) -> str:
        job = self.client.submit(SPEC | {"name": name, "agent": {"evaluations": evaluations}})
        return str(job["id"])

    def wait(self, job: str) -> dict[str, Any]:
        return self.client.wait(job, timeout=_SECONDS)

    def trials(self, job: str) -> int:
        return int(self.client.get(job)["trials"])

    @property
    def head(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "ray" / "head.json").read_text())
        return found

    def dashboard(self, path: str, token: str | None = None) -> httpx.Response:
        token = token or (self.data_dir / "ray" / "token").read_text()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{self.head['url']}{path}", headers=headers, trust_env=False)

    def driver(self, job: str, attempt: int = 1) -> psutil.Process:
        """The process of a job's driver (not the shell around it)."""
        arguments = ["--job", job, "--attempt", str(attempt)]
        for process in psutil.Process(self.head["pid"]).children(recursive=True):
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if command[4:8] == arguments and command[1:4] == ["-P", "-m", "service.driver"]:
                return process
        raise AssertionError(f"job {job} has no driver")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("on_ray"))
    head = running.head
    yield running
    family = psutil.Process(head["pid"]).children(recursive=True)
    running.process.terminate()
    running.process.wait(40)
    # The end of the server is the end of its Ray, to the last process.
    _, left = psutil.wait_procs(family, 10)
    assert left == [] and not psutil.pid_exists(head["pid"])
    assert not Path(head["temp_dir"]).exists()


def test_killing_the_driver_goes_on_from_the_recorded_trials(
    server: Server, tmp_path: Path
) -> None:
    job = server.submit("die at 2")
    ended = server.wait(job)
    assert ended["state"] == "succeeded", ended["reason"]
    assert ended["attempt"] == 2 and ended["report"]["resumed"] == 2
    trials = list(server.client.trials(job))
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    # What the first attempt pinned, the second was given.
    assert ended["report"]["pinned"]["pid"] != ended["report"]["pid"]
    names = sorted(path.name for path in server.client.fetch(job, tmp_path))
    assert names == ["model.bin", "report.html"]
    kinds = [event.kind for event in server.client.history(job)]
    assert kinds.count("attempt") == 2 and kinds.count("trial") == 3


def test_ray_asks_for_its_token_and_shows_the_job(server: Server) -> None:
    assert server.dashboard("/api/jobs/", token="wrong").status_code in (401, 403)
    job = server.submit("fail")
    ended = server.wait(job)
    assert ended["state"] == "failed"
    assert ended["reason"] == {
        "type": "urn:trimtab:problem:data",
        "title": "Unusable data",
        "status": 422,
        "detail": "the data has no test split; give one",
    }
    shown = server.dashboard(f"/api/jobs/{job}-1").json()
    assert shown["metadata"]["name"] == "fail" and shown["metadata"]["target"] == "x86-ort"
    assert "postgres" not in shown["entrypoint"] and "sqlite" not in shown["entrypoint"]
    assert "no test split" in server.dashboard(f"/api/jobs/{job}-1/logs").json()["logs"]


def test_ray_listens_on_loopback_only(server: Server) -> None:
    head = psutil.Process(server.head["pid"])
    for process in [head, *head.children(recursive=True)]:
        try:
            connections = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                address = connection.laddr.ip.removeprefix("::ffff:")
                assert address in ("127.0.0.1", "::1"), (process.name(), connection.laddr)


def test_killing_the_server_leaves_the_job_running_and_cancelling_ends_it(server: Server) -> None:
    job = server.submit("slow", evaluations=1000)
    server.until(lambda: server.trials(job) >= 1)
    actors = server.dashboard("/api/v0/actors?detail=1").json()["data"]["result"]["result"]
    names = {actor["name"] for actor in actors if actor["state"] == "ALIVE"}
    assert {"slow-evaluator-0", "slow-evaluator-1"} <= names
    head = server.head
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    before = time.monotonic()
    server.start()
    assert time.monotonic() - before < 30
    assert server.head == head
    seen = server.trials(job)
    server.until(lambda: server.trials(job) > seen + 1)
    assert server.client.get(job)["attempt"] == 1
    assert server.client.cancel(job)["state"] == "cancelling"
    ended = server.wait(job)
    assert ended["state"] == "cancelled" and ended["report"] is None


def test_a_driver_that_lost_its_lease_stops_itself(server: Server) -> None:
    job = server.submit("slow", evaluations=1000)
    server.until(lambda: server.trials(job) >= 1)
    old = server.driver(job)
    # As if the machine had slept: the lease runs out without anybody noticing.
    old.suspend()
    try:
        server.until(lambda: server.client.get(job)["attempt"] == 2)
    finally:
        if old.is_running() and old.status() == psutil.STATUS_STOPPED:
            old.resume()
    old.wait(30)
    server.client.cancel(job)
    assert server.wait(job)["state"] == "cancelled"
    numbers = [trial["number"] for trial in server.client.trials(job)]
    assert numbers == list(range(len(numbers)))


def test_a_second_server_on_the_same_data_is_refused(server: Server) -> None:
    settings = server.settings | {"port": 0}
    second = subprocess.run(
        [sys.executable, "-c", SERVE, json.dumps(settings)], capture_output=True, timeout=60
    )
    assert second.returncode != 0 and b"another server uses" in second.stderr
    assert server.client.ready()


@pytest.fixture(scope="module")
def ray_here(server: Server) -> Iterator[None]:
    """Joins this process to the server's Ray, as a driver does."""
    import ray
    from ray._raylet import Config

    given = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(server.data_dir / "ray" / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    # Ray reads its environment once; another test may have imported it before.
    Config.initialize("")
    ray.init(address=server.head["address"], log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.mark.usefixtures("ray_here")
class TestRayPool(WorkerPoolContract):
    def make(self, factory: ScorerFactory) -> EvaluatorPool:
        from evaluation.ray_pool import RayPool

        return RayPool(factory, 2, "pool / test")


@pytest.mark.usefixtures("ray_here")
def test_tune_trains_finalists_and_asha_stops_the_hopeless(tmp_path: Path) -> None:
    from evaluation.ray_tuning import RayTuner

    def train_one(finalist: int, directory: Path, report: Callable[[int, float], None]) -> None:
        if finalist == 9:
            raise TuningError("diverged")
        for epoch in range(1, 5):
            (directory / "state.safetensors").write_text(str(epoch))
            time.sleep(0.3 * finalist)
            report(epoch, 0.9 - 0.1 * finalist)

    tuned = RayTuner("job").run(train_one, [0, 1, 9], 4, tmp_path)
    assert [item.finalist for item in tuned] == [0, 1]
    best, hopeless = tuned
    assert best.epochs == 4 and best.score == pytest.approx(0.9)
    assert hopeless.epochs < 4 and hopeless.details["stopped_early"]
    assert (best.directory / "state.safetensors").read_text() == "4"


def test_a_dead_head_is_replaced_and_stopping_leaves_nothing(tmp_path: Path) -> None:
    ray = EmbeddedRay(tmp_path, free_ports(1, first=18600)[0], 1)
    first = ray.ensure()
    try:
        family = psutil.Process(first.pid).children(recursive=True)
        os.kill(first.pid, signal.SIGKILL)
        again = EmbeddedRay(tmp_path, 18600, 1)
        second = again.ensure()
        assert second.pid != first.pid and second.alive
        assert EmbeddedRay(tmp_path, 18600, 1).ensure() == second
        _, left = psutil.wait_procs(family, 20)
        assert left == []
        family = psutil.Process(second.pid).children(recursive=True)
    finally:
        EmbeddedRay(tmp_path, 18600, 1).stop()
    _, left = psutil.wait_procs(family, 10)
    assert left == []
