"""The pool and the tuner of this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.errors import TuningError
from evaluation.local_pool import LocalPool
from evaluation.local_tuning import LocalTuner
from evaluation.pool import EvaluatorPool, ScorerFactory
from evaluation.pool_contract import PoolContract


class TestLocalPool(PoolContract):
    def make(self, factory: ScorerFactory) -> EvaluatorPool:
        return LocalPool(factory)


def train_one(finalist: int, directory: Path, report: Callable[[int, float], None]) -> None:
    if finalist == 7:
        raise TuningError("diverged")
    for epoch in (1, 2):
        (directory / "state.safetensors").write_bytes(b"x")
        report(epoch, finalist + epoch / 10)


def test_every_finalist_is_trained_and_a_bad_one_left_out(tmp_path: Path) -> None:
    tuned = LocalTuner().run(train_one, [3, 7, 1], 2, tmp_path)
    assert [(item.finalist, item.epochs, item.score) for item in tuned] == [
        (3, 2, 3.2),
        (1, 2, 1.2),
    ]
    assert all((item.directory / "state.safetensors").exists() for item in tuned)


def test_no_finalist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="diverged"):
        LocalTuner().run(train_one, [7], 2, tmp_path)
