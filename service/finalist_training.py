"""Fine-tunes finalists with the original as teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from compressors import Compressed, Compressor
from compressors.finetuning import Finetuning, Recipe, cannot_fade, finetune
from compressors.qat import PLAIN_BITS
from compressors.training_images import DatasetImages
from evaluation.errors import ScoringError
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

    A finalist that scores no better trained than it did before stays as it was: a short training may not make up for
    where its first, large steps took the weights.

    Returns:
        Each finalist with its network and its search score, and notes for the report.
    """
    spec = setup.spec
    stage(
        "finetune", f"training {len(finalists)} finalists for {spec.finetune.epochs} epochs", 0, 0
    )
    recipe = Recipe(
        spec.finetune.epochs,
        augment=_augment(setup),
        temperature=spec.finetune.temperature,
        features=spec.finetune.features,
        gradual=spec.finetune.gradual,
        seed=spec.agent.seed,
    )
    dataset = setup.data.train if setup.data.finetune is None else setup.data.finetune
    starts = [beginning(setup, finalist) for finalist in finalists]
    train = TrainFinalist(setup, starts, dataset, recipe, builder)
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
        named = f"finalist {finalist.policy.digest}"
        training = train.begun(one.finalist, one.directory, setup.compressor)
        if one.epochs < spec.finetune.epochs:
            notes.append(f"{named} was stopped after {one.epochs} of {spec.finetune.epochs} epochs")
        if spec.finetune.features and not training.feature_paths:
            notes.append(f"{named} was trained on logits alone: the network has no feature maps")
        why = cannot_fade(setup.compressor, finalist.compressed) if recipe.gradual else None
        if why is not None:
            notes.append(
                f"{named} was pruned before its training: channels cannot fade out of {why}"
            )
        compressed = training.result()
        try:
            evaluation = scorer.score_compressed(compressed)
        except ScoringError as error:
            notes.append(f"{named} stays as it was before its training: {error}")
            results.append((finalist, finalist.compressed, finalist.evaluation))
            continue
        if evaluation.score > finalist.evaluation.score:
            results.append((finalist, compressed, evaluation))
        else:
            notes.append(
                f"{named} stays as it was before its training, which took its search score from "
                f"{finalist.evaluation.score:.4f} to {evaluation.score:.4f}; train for more epochs"
            )
            results.append((finalist, finalist.compressed, finalist.evaluation))
    return results, notes


def beginning(setup: JobSetup, finalist: Finalist) -> Compressed:
    """What a finalist's training begins with: where weights were rounded to fewer than 8 bits or made to share
    values, the weights as they were before."""
    choices, plan = setup.network.network_space.choices(finalist.policy), finalist.compressed.plan
    if not choices.codebook and all(scale.bits >= PLAIN_BITS for scale in plan.weights.values()):
        return finalist.compressed
    whole = replace(choices, integer=frozenset(), weight_bits={}, codebook={})
    return replace(finalist.compressed, network=setup.compressor.compress(whole).network)


def _augment(setup: JobSetup) -> str:
    # A data source with an augmented split of its own needs no second augmentation.
    return "none" if setup.data.finetune is not None else setup.spec.finetune.augment


@dataclass
class TrainFinalist:
    """``evaluation.tuning.TrainOne`` over what finalists' trainings begin with; travels to a worker."""

    setup: JobSetup
    starts: list[Compressed]
    dataset: Any
    recipe: Recipe
    builder: ScorerBuilder

    def begun(self, index: int, directory: Path, compressor: Compressor) -> Finetuning:
        """A finalist's fine-tuning as its directory left it."""
        images = DatasetImages(self.dataset, self.setup.splits.training)
        start = self.starts[index]
        fades = self.recipe.gradual and cannot_fade(compressor, start) is None
        recipe = replace(self.recipe, gradual=fades)
        return Finetuning(compressor, start, images, recipe, directory)

    def __call__(self, index: int, directory: Path, report: Callable[[int, float], None]) -> None:
        scorer = self.builder()
        calibration = load_file(self.builder.images)["calibration"]
        compressor = Compressor(
            self.setup.network.prepared,
            calibration,
            [],
            self.builder.recipe,
            self.builder.reduce_range,
            rankings=self.builder.rankings,
        )

        def after(epoch: int, network: nn.Module) -> None:
            report(epoch, scorer.score_network(network).score)

        finetune(self.begun(index, directory, compressor), after)
