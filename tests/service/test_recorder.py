"""Trials are recorded beside the search: in order, all of them, and never past one that could not be."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from service.context import TrialRecord
from service.contract import trial
from service.errors import Cancelled, ConflictError, LeaseLost
from service.recorder import Recorder, unrecorded


class Records:
    """Batches as they came; the first with trial ``refused`` is refused. Waits at the gate."""

    def __init__(self, refused: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._refused = refused

    def __call__(self, trials: Sequence[TrialRecord]) -> None:
        assert self.gate.wait(30)
        numbers = [t.number for t in trials]
        if self._refused in numbers:
            raise LeaseLost("another attempt was started")
        self.batches.append(numbers)

    @property
    def numbers(self) -> list[int]:
        return [number for batch in self.batches for number in batch]


def test_all_are_recorded_in_their_order_when_the_block_ends() -> None:
    records = Records()
    with Recorder(records) as recorder:
        for number in range(700):
            recorder.put(trial(number))
    assert records.numbers == list(range(700))
    assert len(records.batches) < 100


def test_it_can_be_used_again() -> None:
    records = Records()
    recorder = Recorder(records)
    for number in range(2):
        with recorder:
            recorder.put(trial(number))
        assert records.numbers == list(range(number + 1))


def test_what_could_not_be_recorded_ends_the_search_and_nothing_follows() -> None:
    records = Records(refused=0)
    with pytest.raises(LeaseLost), Recorder(records) as recorder:
        for number in range(100_000):
            recorder.put(trial(number))
    assert records.batches == []


def test_a_failure_of_the_last_trial_is_raised_at_the_end() -> None:
    records = Records(refused=1)
    records.gate.clear()
    with pytest.raises(LeaseLost), Recorder(records) as recorder:
        recorder.put(trial(1))
        records.gate.set()


def test_a_cancelled_search_keeps_what_was_told() -> None:
    records = Records()
    with pytest.raises(Cancelled), Recorder(records) as recorder:
        for number in range(5):
            recorder.put(trial(number))
        raise Cancelled("stop")
    assert records.numbers == list(range(5))


def test_the_error_that_ended_the_search_comes_before_the_recorder_s() -> None:
    with pytest.raises(Cancelled), Recorder(Records(refused=0)) as recorder:
        recorder.put(trial(0))
        raise Cancelled("stop")


def test_the_search_waits_for_a_store_that_is_far_behind() -> None:
    records = Records()
    records.gate.clear()
    put: list[int] = []

    def search() -> None:
        with Recorder(records) as recorder:
            for number in range(600):
                recorder.put(trial(number))
                put.append(number)

    thread = threading.Thread(target=search)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and len(put) == 256
    records.gate.set()
    thread.join(30)
    assert not thread.is_alive() and records.numbers == list(range(600))


def test_trials_that_are_stored_already_are_left_out() -> None:
    stored = {0: trial(0), 1: trial(1)}
    told = {0, 1}
    assert unrecorded([trial(1), trial(2), trial(2), trial(3)], stored, told) == [
        trial(2),
        trial(3),
    ]
    same = trial(2)
    assert unrecorded([same, same], stored, told) == [same]
    for wrong in ([trial(1, score=0.1)], [trial(2, told=0)], [trial(2), trial(3, told=2)]):
        with pytest.raises(ConflictError, match="recorded differently"):
            unrecorded(wrong, stored, told)
