"""Fine-tuning of finalists as Ray Tune trials; ASHA stops the hopeless ones early.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934). A trial
here takes minutes, so what Tune costs to start one does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.schedulers import ASHAScheduler

from evaluation.errors import TuningError
from evaluation.ray_pool import load_by_value, readable
from evaluation.tuning import TrainOne, Tuned, finalist_directory
from latency_tables.exclusive import HostToken


class RayTuner:
    """Satisfies ``Tuner``; needs an initialised Ray.

    Args:
        name: readable name of the trials in Ray's dashboard.
        cpus: cores a trial may use.
        reduction: ASHA keeps one in so many at each rung.
        code_paths: as for ``RayPool``.
    """

    def __init__(
        self, name: str, cpus: int = 1, reduction: int = 2, code_paths: Sequence[Path] = ()
    ) -> None:
        self._code_paths = tuple(str(path) for path in code_paths)
        self._name = readable(name)
        self._cpus = cpus
        self._reduction = reduction

    def run(
        self,
        train_one: TrainOne,
        finalists: Sequence[int],
        epochs: int,
        root: Path,
        stop_early: bool = True,
    ) -> list[Tuned]:
        """See ``Tuner.run``. ``root`` must be the same folder on every node."""
        root.mkdir(parents=True, exist_ok=True)
        cpus, code_paths = self._cpus, self._code_paths

        def trial(config: dict[str, Any], dumped: bytes) -> None:
            import torch

            torch.set_num_threads(cpus)
            finalist = config["finalist"]
            directory = finalist_directory(root, finalist)
            directory.mkdir(parents=True, exist_ok=True)

            def report(epoch: int, score: float) -> None:
                tune.report({"epoch": epoch, "score": score})

            train_one: TrainOne = load_by_value(dumped, code_paths)
            with HostToken().computing():
                train_one(finalist, directory, report)

        scheduler = (
            ASHAScheduler(
                time_attr="epoch", max_t=epochs, grace_period=1, reduction_factor=self._reduction
            )
            if stop_early and len(finalists) > 1 and epochs > 1
            else None
        )
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trial, dumped=cloudpickle.dumps(train_one)),
                {"cpu": self._cpus},
            ),
            param_space={"finalist": tune.grid_search(list(finalists))},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                scheduler=scheduler,
                trial_name_creator=lambda made: f"{self._name}-finalist-{made.config['finalist']}",
                trial_dirname_creator=lambda made: f"finalist-{made.config['finalist']}",
            ),
            run_config=tune.RunConfig(
                name="tune",
                # Tune's own bookkeeping is no artifact of the job: hidden files are not stored.
                storage_path=str(root / ".ray-tune"),
                failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
        tuned: list[Tuned] = []
        errors: list[str] = []
        for result in tuner.fit():
            finalist = int((result.config or {})["finalist"])
            metrics = result.metrics or {}
            if "epoch" not in metrics:
                reason = "no epoch was reported" if result.error is None else _reason(result.error)
                errors.append(f"finalist {finalist}: {reason}")
                continue
            epoch = int(metrics["epoch"])
            details = {
                "scheduler": "asha" if scheduler else "none",
                "stopped_early": epoch < epochs,
            }
            directory = finalist_directory(root, finalist)
            tuned.append(Tuned(finalist, epoch, float(metrics["score"]), directory, details))
        if not tuned:
            raise TuningError(f"no finalist could be fine-tuned: {'; '.join(errors)}")
        return sorted(tuned, key=lambda item: item.finalist)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
