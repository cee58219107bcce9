"""The contract of ``Store``: subclass ``StoreContract``, give a fixture ``url``, run it by pytest.

``url`` is that of an empty or migrated database without jobs that nothing else uses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from service.context import TrialRecord
from service.database import Database
from service.errors import ConflictError, LeaseLost, NotFoundError
from service.migrations import at_head, migrate
from service.store import Lease, Store
from service.tables import Artifact
from service.transitions import JobState

SPEC: dict[str, Any] = {"name": "a job", "objective": "accuracy", "model": {}, "target": "x86-ort"}
_SECONDS = 30.0


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def trial(number: int, score: float = 0.5, **changes: Any) -> TrialRecord:
    """A feasible trial."""
    evaluation = {
        "scores": [score],
        "interval": [score - 0.1, score + 0.1],
        "top1": None,
        "top1_drop": None,
        "costs": {"latency_ms": 1.0 + number},
        "violations": {},
        "seconds": 0.1,
    }
    made = TrialRecord(
        number=number,
        told=number,
        asked_after=number,
        policy={"conv1.keep": 8 + number, "fc.bits": 8},
        evaluation=evaluation,
        failure=None,
    )
    return replace(made, **changes)


def race(*calls: Callable[[], Any]) -> list[Any]:
    """Runs the calls at once in threads; gives their results or errors in order."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        gate.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class StoreContract:
    """What every database behind ``Store`` must do."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def store(self, url: str, clock: Clock) -> Iterator[Store]:
        store = Store(Database(url, clock))
        if not at_head(store.database.engine):
            migrate(store.database.engine)
        yield store
        store.close()

    def started(self, store: Store, owner: str = "driver") -> Lease:
        job = store.create(SPEC).job.id
        return store.claim(job, store.start_attempt(job, _SECONDS), owner, _SECONDS)

    # Jobs

    def test_migrating_twice_changes_nothing(self, store: Store) -> None:
        migrate(store.database.engine)
        assert at_head(store.database.engine)

    def test_its_own_clock_runs(self, url: str) -> None:
        store = Store.open(url)
        first, second = store.now(), store.now()
        store.close()
        assert 1.6e9 < first <= second

    def test_a_job_comes_back_as_it_was_created(self, store: Store) -> None:
        made = store.create(SPEC)
        job = store.get(made.job.id)
        assert made.fresh and job.state == "queued" and job.spec == SPEC and job.name == "a job"
        assert [event.kind for event in store.events(job.id)] == ["state"]

    def test_an_unknown_job_is_not_found(self, store: Store) -> None:
        for ask in (store.get, store.cancel, store.delete):
            with pytest.raises(NotFoundError):
                ask("0" * 12)

    def test_the_same_key_and_body_give_the_same_job(self, store: Store) -> None:
        first = store.create(SPEC, "key")
        again = store.create(dict(reversed(SPEC.items())), "key")
        assert again.job.id == first.job.id and not again.fresh
        assert len(store.jobs()[0]) == 1

    def test_the_same_key_with_another_body_is_refused(self, store: Store) -> None:
        store.create(SPEC, "key")
        with pytest.raises(ConflictError):
            store.create(SPEC | {"name": "another"}, "key")

    def test_racing_requests_with_one_key_make_one_job(self, store: Store) -> None:
        made = race(*[lambda: store.create(SPEC, "key")] * 4)
        assert len({created.job.id for created in made}) == 1
        assert sum(created.fresh for created in made) == 1

    def test_pages_are_newest_first_and_complete(self, store: Store) -> None:
        ids = [store.create(SPEC).job.id for _ in range(5)]
        first, cursor = store.jobs(limit=2)
        second, cursor = store.jobs(cursor=cursor, limit=2)
        last, end = store.jobs(cursor=cursor, limit=2)
        assert [job.id for job in [*first, *second, *last]] == ids[::-1]
        assert end is None
        assert [job.id for job in store.queued(2)] == ids[:2]

    def test_filter_by_state(self, store: Store) -> None:
        kept, gone = (store.create(SPEC).job.id for _ in range(2))
        store.cancel(gone)
        assert [job.id for job in store.jobs(JobState.QUEUED)[0]] == [kept]
        assert store.counts() == {state.value: 0 for state in JobState} | {
            "queued": 1,
            "cancelled": 1,
        }

    def test_a_queued_job_is_cancelled_at_once(self, store: Store) -> None:
        job = store.create(SPEC).job.id
        assert store.cancel(job).state == "cancelled"
        assert store.cancel(job).state == "cancelled"
        assert [event.data["state"] for event in store.events(job)] == ["queued", "cancelled"]
        with pytest.raises(ConflictError):
            store.start_attempt(job, _SECONDS)

    def test_only_an_ended_job_can_be_deleted_and_takes_everything_along(
        self, store: Store
    ) -> None:
        lease = self.started(store)
        store.record_trials(lease, [trial(0)])
        store.pin(lease, "table", {"digest": "x"})
        store.put_artifacts(
            lease, [Artifact(job=lease.job, name="a", path="p", size=1, sha256="s")]
        )
        with pytest.raises(ConflictError):
            store.delete(lease.job)
        store.finish(lease, JobState.SUCCEEDED, report={})
        store.delete(lease.job)
        assert store.trials(lease.job) == ([], None)
        assert store.events(lease.job) == [] and store.artifacts(lease.job) == []
        with pytest.raises(NotFoundError):
            store.get(lease.job)

    # Leases

    def test_two_servers_start_one_attempt(self, store: Store) -> None:
        job = store.create(SPEC).job.id
        results = race(*[lambda: store.start_attempt(job, _SECONDS)] * 4)
        assert [r for r in results if not isinstance(r, ConflictError)] == [1]

    def test_two_drivers_claim_one_lease(self, store: Store) -> None:
        job = store.create(SPEC).job.id
        attempt = store.start_attempt(job, _SECONDS)
        results = race(
            *[lambda owner=owner: store.claim(job, attempt, owner, _SECONDS) for owner in "abcd"]
        )
        assert sum(isinstance(result, Lease) for result in results) == 1
        assert sum(isinstance(result, LeaseLost) for result in results) == 3

    def test_a_live_lease_cannot_be_taken(self, store: Store, clock: Clock) -> None:
        lease = self.started(store)
        clock.time += _SECONDS - 1
        store.renew(lease, _SECONDS)
        clock.time += _SECONDS - 1
        assert store.expired() == []
        assert store.bury(lease.job, lease.attempt) is None
        with pytest.raises(ConflictError):
            store.start_attempt(lease.job, _SECONDS)

    def test_an_expired_lease_is_taken_by_a_new_attempt(self, store: Store, clock: Clock) -> None:
        old = self.started(store)
        clock.time += _SECONDS
        assert [job.id for job in store.expired()] == [old.job]
        assert store.bury(old.job, old.attempt) == 1
        new = store.claim(old.job, store.start_attempt(old.job, _SECONDS), "other", _SECONDS)
        assert new.attempt == 2
        with pytest.raises(LeaseLost):
            store.renew(old, _SECONDS)
        assert [a.outcome for a in store.attempts(old.job)] == ["crashed", None]

    def test_racing_servers_bury_and_start_once(self, store: Store, clock: Clock) -> None:
        old = self.started(store)
        clock.time += _SECONDS

        def take() -> int:
            store.bury(old.job, old.attempt)
            return store.start_attempt(old.job, _SECONDS)

        results = race(*[take] * 4)
        assert [r for r in results if isinstance(r, int)] == [2]

    def test_an_expired_lease_that_nobody_took_can_be_renewed(
        self, store: Store, clock: Clock
    ) -> None:
        lease = self.started(store)
        clock.time += 2 * _SECONDS
        assert store.renew(lease, _SECONDS) == JobState.RUNNING
        assert store.expired() == []
        assert store.bury(lease.job, lease.attempt) is None

    def test_a_reservation_nobody_claimed_expires(self, store: Store, clock: Clock) -> None:
        job = store.create(SPEC).job.id
        attempt = store.start_attempt(job, _SECONDS)
        clock.time += _SECONDS
        assert store.bury(job, attempt) == 1
        with pytest.raises(LeaseLost):
            store.claim(job, attempt, "late", _SECONDS)

    def test_the_runtime_may_hurry_an_expiry(self, store: Store) -> None:
        lease = self.started(store)
        store.expire(lease.job, lease.attempt)
        assert [job.id for job in store.expired()] == [lease.job]

    def test_crashes_without_progress_are_counted_in_a_row(
        self, store: Store, clock: Clock
    ) -> None:
        lease = self.started(store)
        counts = []
        for round_ in range(4):
            if round_ == 2:
                store.record_trials(lease, [trial(0)])
            clock.time += _SECONDS
            counts.append(store.bury(lease.job, lease.attempt))
            attempt = store.start_attempt(lease.job, _SECONDS)
            lease = store.claim(lease.job, attempt, "driver", _SECONDS)
        assert counts == [1, 2, 0, 1]

    def test_a_released_attempt_is_no_crash(self, store: Store) -> None:
        lease = self.started(store)
        store.release(lease.job, lease.attempt)
        assert [job.id for job in store.expired()] == [lease.job]
        assert store.bury(lease.job, lease.attempt) == 0
        with pytest.raises(LeaseLost):
            store.record_trials(lease, [trial(0)])

    def test_working_time_adds_up_over_attempts_to_their_last_sign_of_life(
        self, store: Store, clock: Clock
    ) -> None:
        lease = self.started(store)
        assert store.worked(lease.job, 1) == 0
        clock.time += 20
        store.renew(lease, _SECONDS)
        clock.time += _SECONDS  # dead, and nobody noticed yet
        store.bury(lease.job, 1)
        # A reservation that no driver claimed worked for no time.
        store.start_attempt(lease.job, _SECONDS)
        clock.time += _SECONDS
        store.bury(lease.job, 2)
        third = store.claim(lease.job, store.start_attempt(lease.job, _SECONDS), "c", _SECONDS)
        assert store.worked(lease.job, third.attempt) == 20
        clock.time += 7
        store.renew(third, _SECONDS)
        assert store.worked(lease.job, 3) == 20 and store.worked(lease.job, 4) == 27

    def test_the_server_lists_what_it_left_in_place_of_a_driver(
        self, store: Store, clock: Clock
    ) -> None:
        lease = self.started(store)
        clock.time += _SECONDS
        store.bury(lease.job, lease.attempt)
        left = [Artifact(job=lease.job, name="report.json", path="p", size=1, sha256="s")]
        store.finish_buried(lease.job, lease.attempt, JobState.CANCELLED, artifacts=left)
        assert [item.name for item in store.artifacts(lease.job)] == ["report.json"]

    def test_cancelling_reaches_the_driver_with_its_renewal(self, store: Store) -> None:
        lease = self.started(store)
        assert store.cancel(lease.job).state == "cancelling"
        assert store.renew(lease, _SECONDS) == JobState.CANCELLING
        assert store.finish(lease, JobState.SUCCEEDED, report={}) == JobState.CANCELLED

    def test_the_server_ends_a_job_only_when_no_driver_has_it(
        self, store: Store, clock: Clock
    ) -> None:
        lease = self.started(store)
        with pytest.raises(ConflictError):
            store.finish_buried(lease.job, lease.attempt, JobState.FAILED, {"detail": "dead"})
        clock.time += _SECONDS
        store.bury(lease.job, lease.attempt)
        store.finish_buried(lease.job, lease.attempt, JobState.FAILED, {"detail": "dead"})
        assert store.get(lease.job).reason == {"detail": "dead"}

    # What drivers write

    def test_trials_come_back_in_the_order_of_telling(self, store: Store) -> None:
        lease = self.started(store)
        records = [trial(0, told=1), trial(1, told=0), trial(2)]
        records[2] = replace(records[2], evaluation=None, failure={"reason": "x"}, cached=True)
        for record in records:
            store.record_trials(lease, [record])
        assert store.trials(lease.job) == ([records[1], records[0], records[2]], None)
        page, cursor = store.trials(lease.job, limit=2)
        assert page == [records[1], records[0]]
        assert store.trials(lease.job, cursor=cursor or 0, limit=2) == ([records[2]], None)

    def test_a_policy_keeps_its_order(self, store: Store) -> None:
        lease = self.started(store)
        names = ["zeta", "alpha", "mid"]
        store.record_trials(lease, [trial(0, policy=dict.fromkeys(names, 1))])
        assert list(store.trials(lease.job)[0][0].policy) == names

    def test_a_trial_is_recorded_exactly_once(self, store: Store) -> None:
        lease = self.started(store)
        results = race(*[lambda: store.record_trials(lease, [trial(0)])] * 4)
        assert results == [None] * 4
        assert store.get(lease.job).trials == 1
        assert sum(event.kind == "trial" for event in store.events(lease.job)) == 1

    def test_several_trials_are_recorded_in_their_order_or_not_at_all(self, store: Store) -> None:
        lease = self.started(store)
        first = [trial(2, told=0), trial(0, told=1, score=0.9), trial(1, told=2)]
        store.record_trials(lease, first)
        # Some are known, and one comes twice.
        more = [trial(3), first[1], trial(4), trial(3)]
        store.record_trials(lease, more)
        store.record_trials(lease, more)
        assert store.trials(lease.job)[0] == [*first, trial(3), trial(4)]
        job = store.get(lease.job)
        assert job.trials == store.attempts(lease.job)[0].trials == 5
        assert job.best is not None and job.best["number"] == 0
        events = [event.data for event in store.events(lease.job) if event.kind == "trial"]
        assert [event["number"] for event in events] == [2, 0, 1, 3, 4]
        assert [event["trials"] for event in events] == [1, 2, 3, 4, 5]
        assert [event["best"] for event in events] == [0.5, 0.9, 0.9, 0.9, 0.9]
        ids = [event.id for event in store.events(lease.job)]
        assert ids == list(range(1, len(ids) + 1))
        for wrong in (trial(6, told=2), trial(0, told=6), trial(5, told=9)):
            with pytest.raises(ConflictError):
                store.record_trials(lease, [trial(5), wrong])
        with pytest.raises(ConflictError):
            store.record_trials(lease, [trial(5), trial(6, told=5)])
        assert store.get(lease.job).trials == 5 and len(store.trials(lease.job)[0]) == 5

    def test_another_trial_with_its_number_or_place_is_refused(self, store: Store) -> None:
        lease = self.started(store)
        store.record_trials(lease, [trial(0)])
        with pytest.raises(ConflictError):
            store.record_trials(lease, [trial(0, score=0.9)])
        with pytest.raises(ConflictError):
            store.record_trials(lease, [trial(1, told=0)])
        assert store.trials(lease.job)[0] == [trial(0)]

    def test_a_fenced_driver_writes_nothing(self, store: Store, clock: Clock) -> None:
        old = self.started(store)
        store.record_trials(old, [trial(0)])
        clock.time += _SECONDS
        store.bury(old.job, old.attempt)
        new = store.claim(old.job, store.start_attempt(old.job, _SECONDS), "other", _SECONDS)
        before = len(store.events(old.job))
        writes: list[Callable[[], Any]] = [
            lambda: store.record_trials(old, [trial(1)]),
            lambda: store.record_trials(old, [trial(0)]),
            lambda: store.pin(old, "key", {}),
            lambda: store.stage(old, "search", "", 0, 0),
            lambda: store.warn(old, "still here"),
            lambda: store.put_artifacts(old, []),
            lambda: store.finish(old, JobState.SUCCEEDED, report={}),
        ]
        for write in writes:
            with pytest.raises(LeaseLost):
                write()
        assert len(store.events(old.job)) == before
        store.record_trials(new, [trial(1)])
        assert store.get(old.job).trials == 2

    def test_an_ended_job_takes_no_trials(self, store: Store) -> None:
        lease = self.started(store)
        store.finish(lease, JobState.FAILED, reason={"detail": "no"})
        with pytest.raises(LeaseLost):
            store.record_trials(lease, [trial(0)])
        job = store.get(lease.job)
        assert job.state == "failed" and job.reason == {"detail": "no"}

    def test_the_first_pin_stays(self, store: Store, clock: Clock) -> None:
        old = self.started(store)
        assert store.pin(old, "table", {"rows": (1, 2)}) == {"rows": [1, 2]}
        clock.time += _SECONDS
        store.bury(old.job, old.attempt)
        new = store.claim(old.job, store.start_attempt(old.job, _SECONDS), "other", _SECONDS)
        assert store.pin(new, "table", {"rows": [3]}) == {"rows": [1, 2]}
        assert store.pinned(new.job, "table") == {"rows": [1, 2]}
        assert store.pinned(new.job, "other") is None

    def test_the_best_feasible_trial_is_remembered(self, store: Store) -> None:
        lease = self.started(store)
        store.record_trials(lease, [trial(0, score=0.6)])
        store.record_trials(lease, [trial(1, score=0.5)])
        broken = trial(2, score=0.9)
        assert broken.evaluation is not None
        violated = broken.evaluation | {"violations": {"latency_ms": 0.1}}
        store.record_trials(lease, [replace(broken, evaluation=violated)])
        best = store.get(lease.job).best
        assert best is not None and best["number"] == 0 and best["score"] == 0.6

    def test_events_ascend_without_gaps_however_many_write(self, store: Store) -> None:
        lease = self.started(store)

        def report(first: int) -> None:
            for done in range(first, first + 5):
                store.stage(lease, "search", "", done, 99)

        race(*[partial(report, 10 * writer) for writer in range(4)])
        ids = [event.id for event in store.events(lease.job)]
        assert ids == list(range(1, len(ids) + 1))
        assert [event.id for event in store.events(lease.job, after=ids[-3])] == ids[-2:]

    def test_numbers_that_json_lacks_become_null(self, store: Store) -> None:
        lease = self.started(store)
        store.finish(lease, JobState.SUCCEEDED, report={"a": float("nan"), "b": [float("inf")]})
        assert store.get(lease.job).report == {"a": None, "b": [None]}

    def test_weights_are_kept_once(self, store: Store) -> None:
        first = store.add_weights("f" * 64, 3_000_000_000, "weights/f", {"w": {"dtype": "F32"}})
        again = store.add_weights("f" * 64, 3_000_000_000, "weights/f", {"w": {"dtype": "F32"}})
        assert first.id == again.id and store.weights("f" * 64).size == 3_000_000_000
        with pytest.raises(NotFoundError):
            store.weights("0" * 64)

    def test_artifacts_are_replaced_as_a_whole(self, store: Store) -> None:
        lease = self.started(store)
        for names in (["a", "b"], ["b", "c/d"]):
            store.put_artifacts(
                lease,
                [Artifact(job=lease.job, name=n, path=n, size=1, sha256="s") for n in names],
            )
        assert [item.name for item in store.artifacts(lease.job)] == ["b", "c/d"]
        assert store.artifact(lease.job, "c/d").path == "c/d"
        with pytest.raises(NotFoundError):
            store.artifact(lease.job, "a")
