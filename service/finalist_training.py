"""Fine-tunes finalists with the original as teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from compressors import Compressed, Compressor
from compressors.finetuning import Finetuning, Recipe, finetune
from compressors.training_images import DatasetImages
from evaluation.scoring import ScorerBuilder
from evaluation.tuning import Tuner
from search_spaces import Evaluation
from service.finalists import Finalist, Stage
from service.job_setup import JobSetup


def finetuned(
    setup: JobSetup,
    finalists: list[Finalist],
    tuner: Tuner,
    builder: ScorerBuilder,
    workdir: Path,
    stage: Stage,
) -> tuple[list[tuple[Finalist, Compressed, Evaluation]], list[str]]:
    """Fine-tunes finalists with the original as teacher, on their grids at the end.

    Returns:
        Each trained finalist with its new network and its search score, and notes for the report.
    """
    spec = setup.spec
    stage(
        "finetune", f"training {len(finalists)} finalists for {spec.finetune.epochs} epochs", 0, 0
    )
    recipe = Recipe(
        spec.finetune.epochs,
        augment=_augment(setup),
        features=spec.finetune.features,
        gradual=spec.finetune.gradual,
        seed=spec.agent.seed,
    )
    dataset = setup.data.train if setup.data.finetune is None else setup.data.finetune
    train = TrainFinalist(setup, finalists, dataset, recipe, builder)
    # A later attempt may pick other finalists; each set has checkpoints of its own.
    root = workdir / ".finetune" / "-".join(f.policy.digest for f in finalists)
    # Members of a front cost differently: none is hopeless because a dearer one scores better.
    stop_early = spec.objective != "pareto"
    tuned = tuner.run(train, range(len(finalists)), spec.finetune.epochs, root, stop_early)
    scorer = setup.scorer()
    results = []
    notes = []
    for one in tuned:
        finalist = finalists[one.finalist]
        compressed = train.begun(one.finalist, one.directory, setup.compressor).result()
        results.append((finalist, compressed, scorer.score_compressed(compressed)))
        if one.epochs < spec.finetune.epochs:
            notes.append(
                f"finalist {finalist.policy.digest} was stopped after {one.epochs} of {spec.finetune.epochs} epochs"
            )
    return results, notes


def _augment(setup: JobSetup) -> str:
    # A data source with an augmented split of its own needs no second augmentation.
    return "none" if setup.data.finetune is not None else setup.spec.finetune.augment


@dataclass
class TrainFinalist:
    """``evaluation.tuning.TrainOne`` over a list of finalists; travels to a worker."""

    setup: JobSetup
    finalists: list[Finalist]
    dataset: Any
    recipe: Recipe
    builder: ScorerBuilder

    def begun(self, index: int, directory: Path, compressor: Compressor) -> Finetuning:
        """A finalist's fine-tuning as its directory left it."""
        images = DatasetImages(self.dataset, self.setup.splits.training)
        start = self.finalists[index].compressed
        return Finetuning(compressor, start, images, self.recipe, directory)

    def __call__(self, index: int, directory: Path, report: Callable[[int, float], None]) -> None:
        scorer = self.builder()
        calibration = load_file(self.builder.images)["calibration"]
        compressor = Compressor(
            self.setup.network.prepared,
            calibration,
            [],
            self.builder.recipe,
            self.builder.reduce_range,
        )

        def after(epoch: int, network: nn.Module) -> None:
            report(epoch, scorer.score_network(network).score)

        finetune(self.begun(index, directory, compressor), after)
