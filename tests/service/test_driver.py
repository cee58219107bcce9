"""The driver's process, without Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rest_server import SPEC

from service.blobs import Blobs
from service.contract import trial
from service.errors import LeaseLost
from service.heartbeat import EXIT_LEASE_LOST
from service.job_spec import JobSpec
from service.migrations import migrate
from service.settings import Settings
from service.store import Store

HERE = Path(__file__).parent


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(
        {},
        data_dir=tmp_path,
        code_paths=[HERE],
        pipeline="stand_in:run_job",
        lease_seconds=1.5,
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store.open(settings.database_url)
    migrate(store.database.engine)
    yield store
    store.close()


DRIVEN: list[subprocess.Popen[bytes]] = []


def create(store: Store, name: str, evaluations: int = 3) -> str:
    spec = JobSpec.model_validate(SPEC | {"name": name, "agent": {"evaluations": evaluations}})
    return store.create(spec.model_dump(mode="json")).job.id


def drive(settings: Settings, job: str, attempt: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "service.driver", "--job", job]
    command += ["--attempt", str(attempt), "--config", str(settings.write_driver_file())]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    DRIVEN.append(driver)
    return driver


@pytest.fixture(autouse=True)
def no_driver_is_left() -> Iterator[None]:
    """One that a failed test left behind, stopped perhaps, would keep the host's lock, and all timing would wait."""
    yield
    while DRIVEN:
        driver = DRIVEN.pop()
        driver.kill()
        driver.communicate()


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_driver_takes_its_job_to_the_end_once(settings: Settings, store: Store) -> None:
    job = create(store, "local")
    attempt = store.start_attempt(job, 60)
    first = drive(settings, job, attempt)
    output = first.communicate(timeout=60)[0].decode()
    assert first.returncode == 0, output
    row = store.get(job)
    assert row.state == "succeeded" and row.report is not None and row.report["resumed"] == 0
    assert [item.name for item in store.artifacts(job)] == ["report.html", "sub/model.bin"]
    assert "scoring" in output
    # Whatever starts it again (Ray, a person): nothing is done twice.
    again = drive(settings, job, attempt)
    assert again.wait(60) == EXIT_LEASE_LOST
    assert store.get(job).trials == 3


def test_a_driver_that_slept_through_its_lease_stops_itself(
    settings: Settings, store: Store
) -> None:
    job = create(store, "local slow", 1000)
    driver = drive(settings, job, store.start_attempt(job, 60))
    until(lambda: store.get(job).trials >= 1)
    # Not in the middle of a transaction: SQLite's write lock would sleep with it. Ours begins with a statement.
    with store.database.write() as session:
        store.database.now(session)
        driver.send_signal(signal.SIGSTOP)
        until(lambda: psutil.Process(driver.pid).status() == psutil.STATUS_STOPPED)
    until(lambda: [row.id for row in store.expired()] == [job])
    store.bury(job, 1)
    other = store.claim(job, store.start_attempt(job, 60), "other", 60)
    before = store.get(job).trials
    driver.send_signal(signal.SIGCONT)
    assert driver.wait(30) == EXIT_LEASE_LOST
    assert store.get(job).trials == before
    assert store.get(job).state == "running"
    store.record_trials(other, [trial(before)])


def test_a_driver_stuck_in_a_step_is_ended_hard(settings: Settings, store: Store) -> None:
    job = create(store, "local deaf")
    driver = drive(settings, job, store.start_attempt(job, 60))
    until(lambda: store.get(job).trials >= 1)
    store.expire(job, 1)
    until(lambda: store.bury(job, 1) is not None or bool(store.expire(job, 1)))
    assert driver.wait(30) == EXIT_LEASE_LOST


def test_a_cancelled_driver_unwinds(settings: Settings, store: Store) -> None:
    job = create(store, "local slow", 1000)
    driver = drive(settings, job, store.start_attempt(job, 60))
    until(lambda: store.get(job).trials >= 1)
    store.cancel(job)
    assert driver.wait(30) == 1
    row = store.get(job)
    assert row.state == "cancelled" and row.reason is None and row.report is None
    report = found(settings, store, job)
    assert report["state"] == "cancelled" and report["reason"] is None
    assert report["compressed"] is None and report["met_budget"] is None


def found(settings: Settings, store: Store, job: str) -> dict[str, Any]:
    """The report of a job that ended without a network, held against its trials and its other files."""
    files = {item.name: item for item in store.artifacts(job)}
    assert set(files) == {"report.json", "policy.json", "trials.parquet"}
    read = {
        name: b"".join(Blobs(settings.data_dir).read(item.path)) for name, item in files.items()
    }
    for name, item in files.items():
        assert len(read[name]) == item.size
    trials = store.trials(job)[0]
    table = pq.read_table(pa.BufferReader(read["trials.parquet"])).to_pylist()
    assert [row["policy:conv.keep"] for row in table] == [t.policy["conv.keep"] for t in trials]
    report: dict[str, Any] = json.loads(read["report.json"])
    assert report["evaluations"] == len(trials) and report["wall_seconds"] > 0
    best = store.get(job).best
    assert best is not None and report["best"]["number"] == best["number"]
    policy = json.loads(read["policy.json"])
    assert policy["values"] == trials[best["number"]].policy and policy["space"] == "space"
    return report


def test_a_failed_job_leaves_what_it_had_found(settings: Settings, store: Store) -> None:
    job = create(store, "local break at 2", 5)
    driver = drive(settings, job, store.start_attempt(job, 60))
    assert driver.wait(60) == 1
    row = store.get(job)
    assert row.state == "failed" and row.trials == 3
    report = found(settings, store, job)
    assert report["state"] == "failed" and report["reason"] == row.reason
    assert report["reason"]["detail"] == "an image is torn"
    assert [item["number"] for item in report["policies"]] == [0, 1, 2]


def test_a_killed_drivers_time_counts(settings: Settings, store: Store) -> None:
    job = create(store, "local slow", 4)
    first = drive(settings, job, store.start_attempt(job, 60))
    until(lambda: store.get(job).trials >= 2)
    first.kill()
    first.wait(30)
    store.expire(job, 1)
    assert store.bury(job, 1) is not None
    second = drive(settings, job, store.start_attempt(job, 60))
    assert second.wait(60) == 0
    row, (killed, whole) = store.get(job), store.attempts(job)
    assert row.report is not None and row.report["resumed"] >= 2
    assert killed.claimed is not None and killed.ended is not None
    assert 0 < row.report["worked"] <= killed.ended - killed.claimed
    assert whole.claimed is not None and whole.renewed is not None
    assert store.worked(job, 3) == pytest.approx(
        row.report["worked"] + whole.renewed - whole.claimed
    )


def test_an_unexpected_error_is_a_reason_without_its_details(
    settings: Settings, store: Store
) -> None:
    job = create(store, "break")
    driver = drive(settings, job, store.start_attempt(job, 60))
    log = driver.communicate(timeout=60)[0].decode()
    row = store.get(job)
    assert driver.returncode == 1 and row.state == "failed" and row.reason is not None
    assert row.reason["status"] == 500 and "secret detail" not in json.dumps(row.reason)
    assert "secret detail" in log and row.reason["instance"].rsplit(":", 1)[-1] in log
    with pytest.raises(LeaseLost):
        store.claim(job, 1, "late", 60)
