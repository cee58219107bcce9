"""Trials are recorded beside the search, in one transaction as many as have gathered in a moment."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from types import TracebackType

from service.context import TrialRecord
from service.errors import ConflictError

# Trials told and not recorded yet; beyond that the search waits for the store.
_MOST_WAITING = 256
# Seconds for which others may join a trial's transaction: where evaluations are quick one writes a dozen.
_GATHER = 0.05


def unrecorded(
    trials: Sequence[TrialRecord], numbered: Mapping[int, TrialRecord], told: Container[int]
) -> list[TrialRecord]:
    """Those of several trials that are not stored yet.

    Args:
        numbered: stored trials by number.
        told: places in the order of telling that stored trials have.

    Raises:
        ConflictError: another trial has the number of one of them, or its place in the order of telling.
    """
    fresh: dict[int, TrialRecord] = {}
    places: set[int] = set()
    for trial in trials:
        known = fresh.get(trial.number) or numbered.get(trial.number)
        if known == trial:
            continue
        if known is not None or trial.told in told or trial.told in places:
            raise ConflictError(
                f"trial {trial.number}, the {trial.told}. told, is recorded differently already"
            )
        fresh[trial.number] = trial
        places.add(trial.told)
    return list(fresh.values())


class Recorder:
    """Group commit: a thread hands trials to ``record`` in the order they came.

    What is stored is always a beginning of the log of asks and tells, which is all that a later attempt needs: the
    agent that had learned from trials that were never stored is gone with its process. The ``with`` block ends when all
    trials are stored; where it ends with an error those that were told before are stored all the same.

    Args:
        record: stores trials together or not at all. After it has raised it is not called again.
    """

    def __init__(self, record: Callable[[Sequence[TrialRecord]], None]) -> None:
        self._record = record
        self._waiting: deque[TrialRecord] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Recorder:
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        assert self._thread is not None
        self._thread.join()
        # An error that ended the search already says more than that its trials could not be stored.
        if error is None:
            self._raise()

    def put(self, trial: TrialRecord) -> None:
        """Has a trial stored soon; waits only where the store is far behind.

        Raises:
            Exception: what ``record`` raised for an earlier trial. Nothing was stored since.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._waiting) < _MOST_WAITING or self._error is not None
            )
            self._raise()
            self._waiting.append(trial)
            if len(self._waiting) in (1, _MOST_WAITING):
                self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                self._changed.wait_for(
                    lambda: self._ending or len(self._waiting) >= _MOST_WAITING, _GATHER
                )
                batch = tuple(self._waiting)
            if not batch:
                return
            try:
                self._record(batch)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
                self._changed.notify_all()
