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
from plugin_folder import bring_board, bring_last
from rest_server import SPEC

from service.client import Client
from service.embedded_ray import free_ports

HERE = Path(__file__).parent
SERVE = """
import json, sys
from service.server import serve
from service.settings import Settings
serve(Settings.load({}, **json.loads(sys.argv[1])))
"""
_SECONDS = 240.0


class Server:
    """``trimtab serve`` in a process of its own, with the pipeline of ``stand_in``."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        site = data_dir.with_name("site")
        bring_board(site)
        bring_last(site)
        port, dashboard = free_ports(2, first=18500)
        self.settings = {
            "data_dir": str(data_dir),
            "port": port,
            "ray_dashboard_port": dashboard,
            "ray_num_cpus": 4,
            "evaluators": 1,
            "max_running_jobs": 4,
            "lease_seconds": 6,
            "code_paths": [str(HERE), str(site)],
            "allow_plugins": ["board", "last"],
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("on_ray"))
    yield running
    head = running.head
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


def test_a_whole_front_is_found_by_evaluators_on_ray(server: Server, tmp_path: Path) -> None:
    """The real pipeline: model-guided search, files and report, all by way of the server."""
    front = {
        "name": "whole",
        "target": "sim-bitfusion",
        "budget": {"latency": 0.9},
        "objective": "pareto",
        "costs": ["latency", "energy"],
        "space": {"scope": "quantize"},
        "agent": {"name": "auto", "evaluations": 24},
        "finetune": {"finalists": 2},
        "search_images": 64,
    }
    job = str(server.client.submit(SPEC | front)["id"])
    ended = server.wait(job)
    assert ended["state"] == "succeeded", ended["reason"]
    report = ended["report"]
    trials = list(server.client.trials(job))
    assert [trial["number"] for trial in trials] == list(range(24))
    limit = report["budget_limits"]["latency_ms"]
    assert all(t["evaluation"]["costs"]["latency_ms_upper"] <= limit * (1 + 1e-6) for t in trials)
    curve = server.client.hypervolume(job)
    assert curve == report["hypervolume"]
    assert curve["quantities"] == ["latency_ms", "energy_mj"] and curve["final"] > 0
    listed = {item["number"] for item in server.client.policies(job)}
    members = report["front"]
    assert len(members) == 2 and len(listed) >= 2
    server.client.fetch(job, tmp_path)
    for member in members:
        assert (tmp_path / member["artifact"]).stat().st_size == member["size_bytes"]
        assert member["energy_mj"]["value"] > 0 and member["met_budget"]
    assert report["met_by"] == "prediction"


def test_one_network_for_several_targets_with_plug_ins_on_ray(
    server: Server, tmp_path: Path
) -> None:
    """The real pipeline, its driver and evaluators on Ray, with a target and a criterion of others."""
    targets = [
        {"name": "board?batch=2", "budget": {"latency": 0.7}},
        {"name": "sim-bitfusion", "budget": {"latency": 0.7, "size": 0.8}},
    ]
    job = {
        "name": "whole",
        "targets": targets,
        "space": {"scope": "prune", "criterion": "last"},
        "agent": {"name": "random", "evaluations": 6},
        "search_images": 64,
    }
    shared = {key: value for key, value in SPEC.items() if key not in ("target", "budget")}
    id = str(server.client.submit(shared | job)["id"])
    ended = server.wait(id)
    assert ended["state"] == "succeeded", ended["reason"]
    report = ended["report"]
    assert report["met_budget"] and report["evaluations"] == 6
    assert [entry["name"] for entry in report["targets"]] == [own["name"] for own in targets]
    # The board takes twice as long for each of two images.
    board, sim = (entry["baseline"]["latency_ms"]["predicted_p50"] for entry in report["targets"])
    assert board > 2 * sim
    assert report["versions"]["target board"] == "boards 1.0"
    assert report["versions"]["criterion"] == "lasting 1.0"
    limits = report["budget_limits"]
    for trial in server.client.trials(id):
        costs = trial["evaluation"]["costs"]
        for quantity in ("latency_ms", "latency_ms@sim-bitfusion"):
            assert costs[f"{quantity}_upper"] <= limits[quantity] * (1 + 1e-6)
    server.client.fetch(id, tmp_path)
    files = [tmp_path / entry["artifact"] for entry in report["targets"]]
    assert [file.stat().st_size for file in files] == [
        entry["compressed"]["size_bytes"] for entry in report["targets"]
    ]
    assert files[0] != files[1]


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


def test_killing_the_server_leaves_the_job_alone_and_killing_ray_begins_a_new_attempt(
    server: Server,
) -> None:
    job = server.submit("slow", evaluations=1000)
    server.until(lambda: server.trials(job) >= 1)
    actors = server.dashboard("/api/v0/actors?detail=1").json()["data"]["result"]["result"]
    names = {actor["name"] for actor in actors if actor["state"] == "ALIVE"}
    assert "slow-evaluator-0" in names
    old = server.head
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    server.start()
    assert server.head["pid"] == old["pid"]
    seen = server.trials(job)
    server.until(lambda: server.trials(job) > seen + 1)
    assert server.client.get(job)["attempt"] == 1

    family = psutil.Process(old["pid"]).children(recursive=True)
    os.kill(old["pid"], signal.SIGKILL)
    server.until(lambda: server.client.get(job)["attempt"] == 2)
    seen = server.trials(job)
    server.until(lambda: server.trials(job) > seen)
    assert server.head["pid"] != old["pid"]
    _, left = psutil.wait_procs(family, 10)
    assert left == []

    assert server.client.cancel(job)["state"] == "cancelling"
    ended = server.wait(job)
    assert ended["state"] == "cancelled" and ended["report"] is None
    numbers = [trial["number"] for trial in server.client.trials(job)]
    assert numbers == list(range(len(numbers)))


def test_a_second_server_on_the_same_data_is_refused(server: Server) -> None:
    settings = server.settings | {"port": 0}
    second = subprocess.run(
        [sys.executable, "-c", SERVE, json.dumps(settings)], capture_output=True, timeout=60
    )
    assert second.returncode != 0 and b"another server uses" in second.stderr
    assert server.client.ready()


def test_the_pool_and_the_tuner_on_this_ray(server: Server) -> None:
    environ = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(server.data_dir / "ray" / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": server.head["address"],
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "ray_cases.py"), "--durations=5"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS,
    )
    assert ran.returncode == 0, ran.stdout.decode()
