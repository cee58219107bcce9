"""The local context: trials survive an interruption, and jobs do not mix."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from service.context import TrialRecord
from service.errors import Cancelled, ConflictError
from service.job_spec import JobSpec
from service.local_context import JOURNAL_NAME, LocalContext, job_key
from service.progress import StageProgress, duration
from service.sources import Sources


def spec(**changes: object) -> JobSpec:
    body: dict[str, object] = {
        "model": {"source": "timm:resnet18"},
        "data": {"source": "digits"},
        "budget": {"latency": 0.5},
    }
    return JobSpec.model_validate(body | changes)


def trial(number: int, told: int | None = None, **changes: object) -> TrialRecord:
    return TrialRecord(
        number=number,
        told=number if told is None else told,
        asked_after=0,
        policy={"conv/channels": 8},
        evaluation={"scores": [0.5], "interval": [0.4, 0.6]},
        failure=None,
        **changes,  # type: ignore[arg-type]
    )


def context(tmp_path: Path, job: JobSpec | None = None) -> LocalContext:
    return LocalContext(job or spec(), tmp_path / "out", tmp_path / "data", Sources())


def test_an_interrupted_job_goes_on_from_its_trials(tmp_path: Path) -> None:
    with context(tmp_path) as first:
        assert first.recorded() == []
        first.record([trial(1, told=0)])
        first.record([trial(0, told=1)])
        assert first.pin("table", {"digest": "a", "keys": (1, 2)}) == {
            "digest": "a",
            "keys": [1, 2],
        }
    with context(tmp_path) as second:
        assert [t.number for t in second.recorded()] == [1, 0]
        assert second.recorded()[0] == trial(1, told=0)
        assert second.pin("table", {"digest": "b"}) == {"digest": "a", "keys": [1, 2]}
        second.record([trial(2)])
    with context(tmp_path) as third:
        assert len(third.recorded()) == 3


def test_a_trial_is_recorded_exactly_once(tmp_path: Path) -> None:
    with context(tmp_path) as job:
        job.record([trial(0)])
        job.record([trial(0)])
        assert len(job.recorded()) == 1
        with pytest.raises(ConflictError, match="recorded differently"):
            job.record([trial(0, cached=True)])
        with pytest.raises(ConflictError, match="recorded differently"):
            job.record([trial(5, told=0)])
    with context(tmp_path) as job:
        assert job.recorded() == [trial(0)]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    with context(tmp_path) as job:
        job.record([trial(0)])
    journal = tmp_path / "out" / JOURNAL_NAME
    with journal.open("a") as file:
        file.write('{"trial": {"number": 1, "to')
    with context(tmp_path) as job:
        assert job.recorded() == [trial(0)]
        job.record([trial(1)])
    with context(tmp_path) as job:
        assert job.recorded() == [trial(0), trial(1)]


def test_an_unfinished_job_is_not_overwritten_and_a_finished_one_is(tmp_path: Path) -> None:
    with context(tmp_path) as job:
        job.record([trial(0)])
    other = spec(budget={"latency": 0.3})
    with pytest.raises(ConflictError, match="unfinished job with other options"):
        context(tmp_path, other)
    with context(tmp_path) as job:
        job.finish()
    with context(tmp_path, other) as job:
        assert job.recorded() == []


def test_a_foreign_file_in_the_journals_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL_NAME).write_text("hello\n")
    with pytest.raises(ConflictError, match="no journal of ours"):
        context(tmp_path)
    # The lock was given back with the error.
    (tmp_path / "out" / JOURNAL_NAME).unlink()
    with context(tmp_path):
        pass


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with context(tmp_path), pytest.raises(ConflictError, match="another trimtab process"):
        context(tmp_path)


def test_the_key_covers_what_the_result_depends_on(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    key = job_key(spec(), weights)
    assert key == job_key(spec(name="another name"), weights)
    assert key != job_key(spec(search_images=100), weights)
    assert key != job_key(spec(agent={"seed": 1}), weights)
    assert key != job_key(spec(), None)
    weights.write_bytes(b"two")
    assert key != job_key(spec(), weights)


def test_cancelling(tmp_path: Path) -> None:
    with context(tmp_path) as job:
        job.check()
        job.cancel()
        with pytest.raises(Cancelled):
            job.check()


def test_progress_in_a_log_is_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("service.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with StageProgress(stream) as progress:
        progress.show("search", "", 0, 100)
        clock[0] = 5.0
        progress.show("search", "", 10, 100)  # too soon after the last line
        clock[0] = 20.0
        progress.show("search", "[bold]best 0.9", 50, 100)
        progress.show("export")
        progress.say("done")
    assert stream.getvalue().splitlines() == [
        "search  0/100",
        "search  50/100  [bold]best 0.9  (20 s left)",
        "export",
        "done",
    ]


def test_quiet_progress_says_nothing() -> None:
    stream = io.StringIO()
    with StageProgress(stream, quiet=True) as progress:
        progress.show("search", "", 0, 100)
        progress.say("done")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (45.2, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
