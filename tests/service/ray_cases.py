"""The pool and the tuner on Ray; ``test_on_ray`` runs this in a process of its own, beside the
server's Ray.

Ray reads its authentication once a process, therefore not in the process of the other tests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from evaluation.errors import TuningError
from evaluation.pool import EvaluatorPool, ScorerFactory
from evaluation.pool_contract import WorkerPoolContract
from evaluation.ray_pool import RayPool
from evaluation.ray_tuning import RayTuner


@pytest.fixture(scope="module", autouse=True)
def joined() -> Iterator[None]:
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


class TestRayPool(WorkerPoolContract):
    def make(self, factory: ScorerFactory) -> EvaluatorPool:
        return RayPool(factory, 2, "pool / test")


def test_tune_trains_finalists_and_asha_stops_the_hopeless(tmp_path: Path) -> None:
    def train_one(finalist: int, directory: Path, report: Callable[[int, float], None]) -> None:
        if finalist == 9:
            raise TuningError("diverged")
        best = directory.parent / "finalist-0" / "state.safetensors"

        def through() -> bool:
            return finalist == 0 or (best.exists() and best.read_text() == "4")

        for epoch in range(1, 5):
            (directory / "state.safetensors").write_text(str(epoch))
            # However late it was begun, the best is heard of before the other one.
            until = time.monotonic() + 60
            while not through() and time.monotonic() < until:
                time.sleep(0.1)
            time.sleep(finalist)
            report(epoch, 0.9 - 0.1 * finalist)

    tuned = RayTuner("job").run(train_one, [0, 1, 9], 4, tmp_path)
    assert [item.finalist for item in tuned] == [0, 1]
    best, hopeless = tuned
    assert best.epochs == 4 and best.score == pytest.approx(0.9)
    assert hopeless.epochs < 4 and hopeless.details["stopped_early"]
    assert (best.directory / "state.safetensors").read_text() == "4"
