"""A driver that cannot renew its lease stops itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract import SPEC
from service.heartbeat import Heartbeat
from service.migrations import migrate
from service.store import Lease, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path / 'db'}")
    migrate(store.database.engine)
    yield store
    store.close()


def claimed(store: Store) -> Lease:
    job = store.create(SPEC).job.id
    return store.claim(job, store.start_attempt(job, 60), "driver", 0.3)


def test_it_keeps_the_lease(store: Store) -> None:
    lease = claimed(store)
    heartbeat = Heartbeat(store, lease, 0.3)
    heartbeat.start()
    assert not threading.Event().wait(1.0)
    assert store.expired() == [] and not heartbeat.lost
    heartbeat.stop()
    assert not threading.Event().wait(0.4)
    assert [job.id for job in store.expired()] == [lease.job]


def test_it_hears_that_the_job_is_being_cancelled(store: Store) -> None:
    lease = claimed(store)
    heartbeat = Heartbeat(store, lease, 30)
    heartbeat.beat()
    assert not heartbeat.cancelling
    store.cancel(lease.job)
    heartbeat.beat(at_least_every=60)
    assert not heartbeat.cancelling
    heartbeat.beat()
    assert heartbeat.cancelling and not heartbeat.lost


def test_a_driver_that_was_replaced_is_ended(store: Store) -> None:
    lease = claimed(store)
    ended = threading.Event()
    heartbeat = Heartbeat(store, lease, 0.3, grace=0.1, on_lost=ended.set)
    store.expire(lease.job, lease.attempt)
    store.bury(lease.job, lease.attempt)
    heartbeat.start()
    assert ended.wait(5)
    assert heartbeat.lost
    heartbeat.stop()


def test_a_driver_that_unwinds_in_time_is_not(store: Store) -> None:
    lease = claimed(store)
    ended = threading.Event()
    heartbeat = Heartbeat(store, lease, 0.3, grace=30, on_lost=ended.set)
    store.expire(lease.job, lease.attempt)
    store.bury(lease.job, lease.attempt)
    heartbeat.start()
    while not heartbeat.lost:
        assert not ended.wait(0.01)
    heartbeat.stop()
    assert not ended.is_set()


def test_a_database_that_does_not_answer_for_a_whole_lease_loses_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = claimed(store)
    ended = threading.Event()
    heartbeat = Heartbeat(store, lease, 0.6, grace=0.0, on_lost=ended.set)

    def broken(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(store, "renew", broken)
    heartbeat.beat()
    assert not heartbeat.lost
    heartbeat.start()
    assert ended.wait(5)
    heartbeat.stop()
