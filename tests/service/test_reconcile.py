"""The reconcile loop on a fake runtime and a clock that the test turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from service.blobs import Blobs
from service.contract import SPEC, Clock, trial
from service.database import Database
from service.errors import RuntimeUnavailable
from service.migrations import migrate
from service.reconcile import Reconciler
from service.runtime import DriverState
from service.store import Lease, Store
from service.transitions import JobState

JOB = SPEC | {"model": {"source": "digits_cnn"}, "agent": {"name": "random", "seed": 0}}


class FakeRuntime:
    """Remembers what it was asked; the test says what has become of the drivers."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, int]] = []
        self.cancelled: list[tuple[str, int]] = []
        self.metadata: Mapping[str, str] = {}
        self.states: dict[tuple[str, int], DriverState] = {}
        self.broken = False

    def ensure(self) -> None:
        if self.broken:
            raise RuntimeUnavailable("Ray does not start")

    def submit(self, job: str, attempt: int, metadata: Mapping[str, str]) -> None:
        self.submitted.append((job, attempt))
        self.metadata = metadata
        self.states[job, attempt] = DriverState.RUNNING

    def poll(self, job: str, attempt: int) -> DriverState:
        return self.states.get((job, attempt), DriverState.UNKNOWN)

    def explain(self, job: str, attempt: int) -> str:
        return f"attempt {attempt} of {job}: exit code 9"

    def cancel(self, job: str, attempt: int) -> None:
        self.cancelled.append((job, attempt))
        self.states[job, attempt] = DriverState.ENDED


class World:
    """A store, a runtime and a loop over them."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.store = Store(Database(f"sqlite:///{path / 'db'}", self.clock))
        migrate(self.store.database.engine)
        self.runtime = FakeRuntime()
        self.blobs = Blobs(path)
        self.loop = self.another()

    def another(self, max_running: int = 1) -> Reconciler:
        return Reconciler(self.store, self.runtime, self.blobs, max_running, clock=self.clock)

    def job(self) -> str:
        return self.store.create(JOB).job.id

    def claim(self, job: str) -> Lease:
        attempt = self.store.get(job).attempt
        return self.store.claim(job, attempt, f"driver {attempt}", 30)

    def state(self, job: str) -> str:
        return self.store.get(job).state

    def die(self, job: str) -> None:
        self.runtime.states[job, self.store.get(job).attempt] = DriverState.ENDED


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_jobs_start_in_their_order_as_there_is_room(world: World) -> None:
    first, second = world.job(), world.job()
    world.loop.step()
    world.loop.step()
    assert world.runtime.submitted == [(first, 1)]
    assert world.runtime.metadata == {"name": "a job", "model": "digits_cnn", "target": "x86-ort"}
    world.store.finish(world.claim(first), JobState.SUCCEEDED, report={})
    world.loop.step()
    assert world.runtime.submitted == [(first, 1), (second, 1)]


def test_several_jobs_run_where_the_operator_allows_it(world: World) -> None:
    jobs = [world.job() for _ in range(3)]
    world.another(max_running=2).step()
    assert world.runtime.submitted == [(job, 1) for job in jobs[:2]]


def test_a_dead_driver_is_replaced_at_once_when_the_runtime_knows(world: World) -> None:
    job = world.job()
    world.loop.step()
    lease = world.claim(job)
    world.store.record_trials(lease, [trial(0)])
    world.die(job)
    world.loop.step()
    assert world.runtime.submitted == [(job, 1), (job, 2)]
    assert world.store.trials(job)[0] == [trial(0)]


def test_a_silent_driver_is_replaced_when_its_lease_has_run_out(world: World) -> None:
    job = world.job()
    world.loop.step()
    world.claim(job)
    world.runtime.states.clear()
    world.clock.time += 29
    world.loop.step()
    assert world.runtime.submitted == [(job, 1)]
    world.clock.time += 1
    world.loop.step()
    assert world.runtime.submitted == [(job, 1), (job, 2)]
    assert world.runtime.cancelled == [(job, 1)]


def test_a_driver_that_renews_is_left_alone_whatever_the_runtime_forgot(world: World) -> None:
    job = world.job()
    world.loop.step()
    lease = world.claim(job)
    world.runtime.states.clear()
    for _ in range(10):
        world.clock.time += 20
        world.store.renew(lease, 30)
        world.loop.step()
    assert world.runtime.submitted == [(job, 1)]


def test_it_gives_up_after_crashes_in_a_row_and_says_why(world: World) -> None:
    job = world.job()
    for attempt in (1, 2, 3):
        world.loop.step()
        assert world.runtime.submitted[-1] == (job, attempt)
        world.claim(job)
        world.die(job)
    world.loop.step()
    row = world.store.get(job)
    assert row.state == "failed" and row.reason is not None
    assert row.reason["type"] == "urn:trimtab:problem:driver-crashed"
    assert "3 times" in row.reason["detail"] and "exit code 9" in row.reason["detail"]
    assert len(world.runtime.submitted) == 3


def test_crashes_with_trials_between_them_are_no_reason_to_give_up(world: World) -> None:
    job = world.job()
    for number in range(6):
        world.loop.step()
        world.store.record_trials(world.claim(job), [trial(number)])
        world.die(job)
    world.loop.step()
    assert world.state(job) == "running" and world.store.get(job).attempt == 7


def test_a_cancelled_job_without_a_driver_ends(world: World) -> None:
    job = world.job()
    world.loop.step()
    world.claim(job)
    world.store.cancel(job)
    world.die(job)
    world.loop.step()
    assert world.state(job) == "cancelled"
    assert world.store.artifacts(job) == []  # without a trial nothing was found


def test_what_a_job_had_found_outlives_its_driver(world: World) -> None:
    job = world.job()
    world.loop.step()
    lease = world.claim(job)
    world.store.pin(lease, "space", {"digest": "d"})
    world.store.record_trials(lease, [trial(0)])
    world.store.record_trials(lease, [trial(1, score=0.7)])
    world.store.cancel(job)
    world.die(job)
    world.loop.step()
    assert world.state(job) == "cancelled"
    files = {item.name: item.path for item in world.store.artifacts(job)}
    report = json.loads(b"".join(world.blobs.read(files["report.json"])))
    assert report["state"] == "cancelled" and report["best"]["number"] == 1
    policy = json.loads(b"".join(world.blobs.read(files["policy.json"])))
    assert policy["values"] == trial(1).policy


def test_files_that_cannot_be_written_do_not_keep_a_job_from_its_end(world: World) -> None:
    job = world.job()
    world.loop.step()
    world.store.record_trials(world.claim(job), [trial(0)])
    world.store.cancel(job)
    (world.blobs.root / "jobs").write_text("a file where the folder should be")
    world.die(job)
    world.loop.step()
    assert world.state(job) == "cancelled" and world.store.artifacts(job) == []


def test_a_driver_that_does_not_hear_is_ended_by_force_after_its_time(world: World) -> None:
    job = world.job()
    world.loop.step()
    lease = world.claim(job)
    world.store.cancel(job)
    for _ in range(3):
        world.clock.time += 10
        world.store.renew(lease, 30)
        world.loop.step()
    assert world.runtime.cancelled == []
    world.clock.time += 1
    world.loop.step()
    assert world.runtime.cancelled == [(job, 1)]
    world.loop.step()
    assert world.state(job) == "cancelled"


def test_a_runtime_that_is_down_is_asked_again_later(world: World) -> None:
    job = world.job()
    world.runtime.broken = True
    world.loop.step()
    assert world.state(job) == "queued"
    world.runtime.broken = False
    world.loop.step()
    assert world.runtime.submitted == []
    world.clock.time += 10
    world.loop.step()
    assert world.runtime.submitted == [(job, 1)]


def test_a_released_job_goes_on_with_the_next_server(world: World) -> None:
    job = world.job()
    world.loop.step()
    world.store.record_trials(world.claim(job), [trial(0)])
    world.loop.release_all()
    world.another().step()
    assert world.runtime.submitted == [(job, 1), (job, 2)]
    assert [a.outcome for a in world.store.attempts(job)] == ["released", None]


def test_two_servers_do_not_start_a_job_twice(world: World) -> None:
    job = world.job()
    loops = [world.another(), world.another()]
    for _ in range(3):
        for loop in loops:
            loop.step()
    assert world.runtime.submitted == [(job, 1)]
