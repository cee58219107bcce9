"""A job's seconds count over all its attempts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.contract import trial
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.sources import Sources

EARLIER = 500.0


class Interrupted(LocalContext):
    """Ends after its first trials, as if they had taken ``EARLIER`` seconds."""

    written = 0

    def record(self, trials: Sequence[Any]) -> None:
        self._journal._begun -= EARLIER
        super().record(trials)
        self.written += len(trials)
        raise KeyboardInterrupt


@pytest.mark.parametrize("seconds", [EARLIER, 20 * EARLIER])
def test_a_resumed_job_goes_on_with_the_time_it_has_left(
    seconds: float,
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.price_setup.SAMPLES", 24)
    spec = JobSpec.model_validate(
        {
            "model": {"source": "python:service.demo_networks:digits_cnn"},
            "data": {"source": "digits"},
            "target": "sim-bitfusion",
            "budget": {"macs": 0.5},
            "space": {"scope": "prune"},
            "agent": {"name": "random", "evaluations": 30},
            "max_seconds": seconds,
            "search_images": 64,
        }
    )
    args = (spec, tmp_path / "out", data_dir, Sources(), None, 1)
    with pytest.raises(KeyboardInterrupt), Interrupted(*args) as first:
        run_job(spec, first)
    with LocalContext(*args) as second:
        assert second.worked() > EARLIER
        report = run_job(spec, second)
    assert 0 < first.written < 30
    assert report["evaluations"] == (first.written if seconds == EARLIER else 30)
    assert report["wall_seconds"] > second.worked()


def test_an_unfinished_run_counts_to_its_last_line_or_its_end(tmp_path: Path) -> None:
    spec = JobSpec.model_validate(
        {
            "model": {"source": "timm:resnet18"},
            "data": {"source": "digits"},
            "budget": {"latency": 0.5},
        }
    )

    def context() -> LocalContext:
        return LocalContext(spec, tmp_path / "out", tmp_path / "data", Sources())

    with context() as first:
        assert first.worked() == 0
        first.pin("space", {"digest": "d"})
    with context() as second:  # without a trial nothing was kept
        assert second.worked() == 0
        second.record([trial(0)])
        second._journal._begun -= EARLIER
    with context() as third:
        assert third.worked() > EARLIER
        third._journal._begun -= EARLIER
    with context() as fourth:
        assert fourth.worked() > 2 * EARLIER
