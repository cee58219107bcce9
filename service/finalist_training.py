"""Fine-tunes finalists with the original as teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from compressors import Compressed
from compressors.finetuning import STATE_FILE, Recipe, finetune, folded, trainable
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
    """Fine-tunes finalists with the original as teacher and quantizes them anew.

    Returns:
        Each trained finalist with its new network and its search score, and notes for the report.
    """
    spec = setup.spec
    stage(
        "finetune", f"training {len(finalists)} finalists for {spec.finetune.epochs} epochs", 0, 0
    )
    recipe = Recipe(spec.finetune.epochs, augment=_augment(setup), seed=spec.agent.seed)
    dataset = setup.data.train if setup.data.finetune is None else setup.data.finetune
    train = TrainFinalist(setup, finalists, dataset, recipe, builder)
    # A later attempt may pick other finalists; each set has checkpoints of its own.
    root = workdir / ".finetune" / "-".join(f.policy.digest for f in finalists)
    tuned = tuner.run(train, range(len(finalists)), spec.finetune.epochs, root)
    scorer = setup.scorer()
    results = []
    notes = []
    for one in tuned:
        finalist = finalists[one.finalist]
        plan = finalist.compressed.plan
        network = trainable(setup.network.prepared, finalist.compressed.network, plan)
        network.load_state_dict(load_file(one.directory / STATE_FILE))
        choices = setup.network.network_space.choices(finalist.policy)
        compressed = setup.compressor.requantize(folded(network, plan), choices)
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
    dataset: object
    recipe: Recipe
    builder: ScorerBuilder

    def __call__(self, index: int, directory: Path, report: Callable[[int, float], None]) -> None:
        finalist = self.finalists[index]
        plan = finalist.compressed.plan
        network = trainable(self.setup.network.prepared, finalist.compressed.network, plan)
        scorer = self.builder()

        def after(epoch: int, trained: object) -> None:
            from torch import nn

            assert isinstance(trained, nn.Module)
            report(epoch, scorer.score_network(trained).score)

        finetune(
            network,
            self.setup.network.folded,
            self.dataset,
            self.setup.splits.training,
            self.recipe,
            directory,
            after,
        )
