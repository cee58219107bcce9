"""A job's journal: a JSON-lines file that an interrupted ``trimtab compress`` goes on from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from service.context import TrialRecord
from service.errors import ConflictError
from service.recorder import unrecorded

JOURNAL_VERSION = 1
_TRIAL_FIELDS = frozenset(field.name for field in fields(TrialRecord))


class Journal:
    """Trials and pinned values, each on disk before the search goes on.

    The first line names the job by a key over everything its result depends on. A torn last line
    (the machine went down while it was written) is dropped.

    Args:
        path: the file; made when it is not there.
        key: of this job.

    Attributes:
        earlier_seconds: for which processes worked on the job before this one, each to the last line it wrote.

    Raises:
        ConflictError: the file belongs to another job that is not finished, or is no journal.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.earlier_seconds = 0.0
        self._begun = time.monotonic()
        self.trials: list[TrialRecord] = []
        # Of the same trials: batches are many, and none shall go through all that were before.
        self._by_number: dict[int, TrialRecord] = {}
        self._places: set[int] = set()
        self.pins: dict[str, dict[str, Any]] = {}
        self._finished = False
        self._read(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._append({"journal": JOURNAL_VERSION, "key": key})

    def record(self, trials: Sequence[TrialRecord]) -> None:
        """Stores trials once; the very same trial again changes nothing.

        Raises:
            ConflictError: another trial has the number of one of them or its place in the order of telling.
        """
        fresh = unrecorded(trials, self._by_number, self._places)
        if fresh:
            self._append(*({"trial": asdict(trial)} for trial in fresh))
            self._take(fresh)

    def _take(self, trials: Sequence[TrialRecord]) -> None:
        self.trials.extend(trials)
        self._by_number.update({trial.number: trial for trial in trials})
        self._places.update(trial.told for trial in trials)

    def pin(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Stores ``value`` unless there is one; returns what is stored."""
        if name not in self.pins:
            self._append({"pin": name, "value": value})
            # What a later run will read: tuples have become lists there.
            self.pins[name] = json.loads(json.dumps(value))
        return self.pins[name]

    def finish(self) -> None:
        """Marks the job done: another job may write into this folder from now on."""
        self._append({"finished": True})
        self._finished = True

    def close(self) -> None:
        """Ends writing. A journal without a trial is removed: a job that failed at its start, on bad
        input say, must not keep its folder from the corrected command."""
        if self.trials and not self._finished:
            self._append({"interrupted": True})
        self._file.close()
        if not self.trials and not self._finished:
            self.path.unlink(missing_ok=True)

    def _append(self, *lines: dict[str, Any]) -> None:
        worked = self.earlier_seconds + time.monotonic() - self._begun
        for line in lines:
            self._file.write(json.dumps(line | {"worked": worked}, separators=(",", ":")) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, key: str) -> None:
        if not self.path.exists():
            return
        whole, newline, _torn = self.path.read_bytes().rpartition(b"\n")
        try:
            lines = [json.loads(line) for line in whole.split(b"\n")] if newline else []
            head = lines[0] if lines else {"journal": JOURNAL_VERSION, "key": key}
            known = head["journal"] == JOURNAL_VERSION
        except (ValueError, KeyError, TypeError):
            raise ConflictError(
                f"{self.path} is no journal of ours; choose another --out or remove it"
            ) from None
        finished = any("finished" in line for line in lines)
        if head.get("key") != key or not known:
            if not finished:
                raise ConflictError(
                    f"{self.path.parent} holds an unfinished job with other options; repeat its "
                    f"command to go on, choose another --out, or remove {self.path}"
                )
            self.path.unlink()
            return
        for line in lines[1:]:
            # Journals of an earlier version do not tell.
            self.earlier_seconds = line.get("worked", self.earlier_seconds)
            if "trial" in line:
                given = {k: v for k, v in line["trial"].items() if k in _TRIAL_FIELDS}
                self._take([TrialRecord(**given)])
            elif "pin" in line:
                self.pins.setdefault(line["pin"], line["value"])
        os.truncate(self.path, len(whole) + 1 if newline else 0)
