"""Fine-tuning of finalists, spread by Ray Tune or run one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# train_one(finalist index, directory for its checkpoints and result, report(epoch, score)) trains one finalist
# and leaves ``state.safetensors`` in the directory after every epoch. It goes on from that file if it is there.
TrainOne = Callable[[int, Path, Callable[[int, float], None]], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """One finalist after fine-tuning.

    Attributes:
        finalist: its index.
        epochs: epochs trained; fewer than asked where ASHA stopped it.
        score: validation score after the last epoch.
        directory: where its ``state.safetensors`` lies.
    """

    finalist: int
    epochs: int
    score: float
    directory: Path
    details: dict[str, Any]


class Tuner(Protocol):
    """Runs ``train_one`` for every finalist and may stop the hopeless ones early (ASHA)."""

    def run(
        self,
        train_one: TrainOne,
        finalists: Sequence[int],
        epochs: int,
        root: Path,
        stop_early: bool = True,
    ) -> list[Tuned]:
        """Trains them.

        Args:
            stop_early: those that score worse may be stopped; not where each stands for another cost.

        Raises:
            TuningError: (a TrimtabError) no finalist could be trained.
        """


def finalist_directory(root: Path, finalist: int) -> Path:
    """Where a finalist's checkpoints lie; the same in every attempt of a job."""
    return root / f"finalist-{finalist}"
