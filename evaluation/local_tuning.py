"""Fine-tuning one finalist after another in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.errors import TuningError
from evaluation.tuning import TrainOne, Tuned, finalist_directory
from latency_tables.errors import TrimtabError
from latency_tables.exclusive import HostToken


class LocalTuner:
    """Satisfies ``Tuner``; every finalist gets all its epochs."""

    def run(
        self,
        train_one: TrainOne,
        finalists: Sequence[int],
        epochs: int,
        root: Path,
        stop_early: bool = True,  # noqa: ARG002
    ) -> list[Tuned]:
        """See ``Tuner.run``."""
        tuned: list[Tuned] = []
        errors: list[str] = []
        for finalist in finalists:
            directory = finalist_directory(root, finalist)
            directory.mkdir(parents=True, exist_ok=True)
            reports: list[tuple[int, float]] = []

            def report(epoch: int, score: float, to: list[tuple[int, float]] = reports) -> None:
                to.append((epoch, score))

            try:
                with HostToken().computing():
                    train_one(finalist, directory, report)
            except TrimtabError as error:
                errors.append(f"finalist {finalist}: {error.detail}")
                continue
            if not reports:
                errors.append(f"finalist {finalist}: trained without reporting an epoch")
                continue
            epoch, score = reports[-1]
            details = {"scheduler": "none", "stopped_early": epoch < epochs}
            tuned.append(Tuned(finalist, epoch, score, directory, details))
        if not tuned:
            raise TuningError(f"no finalist could be fine-tuned: {'; '.join(errors)}")
        return tuned
