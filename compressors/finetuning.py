"""Fine-tuning: distilled with the norms in place, then trained on the integers the network will run in."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressors.augmentation import NAMES, Augmentation
from compressors.compressor import Choices, Compressed, Compressor
from compressors.distillation import feature_paths
from compressors.errors import TrainingError
from compressors.factored_structure import factored_structure
from compressors.gradual_pruning import InputFade, fade, mixes_channels
from compressors.low_rank import install
from compressors.plan import Plan
from compressors.preparation import fold_norms, unfold_norms
from compressors.pruner import Skip, drop_blocks, slice_channels
from compressors.qat import (
    PLAIN_BITS,
    QuantizationAware,
    folded_scales,
    grids_of,
    on_grid,
    plain_state,
    round_weights,
    unfolded_scales,
)
from compressors.schedule import folded_rate, peak_rate
from compressors.sparsity import keep_zeros, thin_again
from compressors.structure import inside
from compressors.training import Course, Training
from compressors.training_images import TrainingImages

STATE_FILE = "state.safetensors"
INTEGER_STATE_FILE = "integer.safetensors"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training images, both parts together.
        rate: peak learning rate while norms are in place; ``schedule.peak_rate`` when None.
        batch: images a step.
        temperature, hard: of ``distillation.logit_loss``.
        features: weight of ``distillation.feature_loss``.
        decay: weight decay.
        augment: see ``augmentation.Augmentation.named``.
        seed: of order and augmentation.
        integer_epochs: how many of the epochs train the folded network on its grids (``qat``); a tenth when None, and
            none of fewer than three. Networks without integer layers have none.
        gradual: channels fade out in the course of the training (``gradual_pruning``) instead of being gone from its
            start; takes the time of the unpruned network.
        half: bfloat16 where norms are in place; on GPUs when None.
    """

    epochs: int
    rate: float | None = None
    batch: int = 128
    temperature: float = 4.0
    hard: float = 0.1
    features: float = 0.0
    decay: float = 5e-4
    augment: str = "crop_flip"
    seed: int = 0
    integer_epochs: int | None = None
    gradual: bool = False
    half: bool | None = None

    def __post_init__(self) -> None:
        if self.augment not in NAMES:
            raise TrainingError(f"unknown augmentation {self.augment!r}; known: {', '.join(NAMES)}")
        if self.epochs < 1 or not 0 <= (self.integer_epochs or 0) <= self.epochs:
            raise TrainingError(
                f"{self.epochs} epochs, {self.integer_epochs} of them on integers: at least one in all, "
                "and no more on integers than in all"
            )
        if self.batch < 2:
            raise TrainingError(f"a batch norm cannot train on batches of {self.batch}")

    def parts(self, quantized: bool) -> tuple[int, int]:
        """Epochs with norms in place, and on the grids."""
        if not quantized:
            return self.epochs, 0
        tenth = max(1, self.epochs // 10) if self.epochs > 2 else 0
        last = tenth if self.integer_epochs is None else self.integer_epochs
        return self.epochs - last, last

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Raises TrainingError for an unknown field or a value that cannot be."""
        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise TrainingError(f"unknown fields in a fine-tuning recipe: {', '.join(unknown)}")
        return cls(**data)


def trainable(original: nn.Module, compressed: nn.Module, plan: Plan) -> nn.Module:
    """The pruned network with its batch norms back, computing what the folded one does.

    Args:
        original: uncompressed, norms in place.
        compressed: ``Compressed.network``.
        plan: its plan.
    """
    network = copy.deepcopy(original)
    drop_blocks(network, plan.dropped)
    channels = dict(plan.channels)
    for layer, norm in plan.folded:
        # Groups are found with norms folded, so the plan need not name the norms.
        axes = plan.channels.get(layer, {})
        kept = axes.get("out", axes.get("both"))
        if kept is not None:
            channels[norm] = {"both": kept}
    slice_channels(network, channels)
    install(network, plan.ranks)
    alive = [pair for pair in plan.normed if _exists(network, pair[0])]
    folded_norms = {path for pair in alive for path in (f"{pair[0]}.weight", f"{pair[0]}.bias")}
    state = {k: v for k, v in compressed.state_dict().items() if k not in folded_norms}
    network.load_state_dict(state, strict=False)
    unfold_norms(network, compressed, alive)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def folded(network: nn.Module, plan: Plan) -> nn.Module:
    """A trained network in the form a plan describes: norms folded, eval mode."""
    network = copy.deepcopy(network).eval()
    fold_norms(network, [pair for pair in plan.normed if _exists(network, pair[0])])
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def _exists(network: nn.Module, path: str) -> bool:
    module: Any = network
    for name in path.split("."):
        if isinstance(module, Skip) or not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


class Finetuning:
    """The fine-tuning of one compressed network, epoch by epoch; goes on where ``directory`` says it stopped.

    Args:
        compressor: of the original; calibrates once the norms are folded.
        start: the network to begin with and its plan. Below 8 bits give a network whose weights are not rounded yet.
        images: what may be trained on; never calibration, search or test images.
        recipe: how.
        directory: gets the state.
        device: where to train.

    Attributes:
        feature_paths: modules whose outputs are compared with the teacher's; none where the recipe asks for no
            features or the network has no feature maps.

    Raises:
        TrainingError: the directory belongs to another training, or the recipe cannot serve this plan.
    """

    def __init__(
        self,
        compressor: Compressor,
        start: Compressed,
        images: TrainingImages,
        recipe: Recipe,
        directory: Path,
        device: str | torch.device = "cpu",
    ) -> None:
        self._compressor, self._start, self._images = compressor, start, images
        self.recipe, self._directory = recipe, directory
        self._device = torch.device(device)
        self._first, self._last = recipe.parts(start.plan.quantized)
        norms = start.plan.folded
        self.feature_paths = feature_paths(compressor.structure, norms) if recipe.features else ()
        self._training: Training | None = None
        self._plan = start.plan
        self._grids: QuantizationAware | None = None
        self._loss_with_norms = math.nan
        if self._first:
            self._training = self._with_norms()
        if self._training is None or (self._training.finished and self._last):
            self._to_integers()

    @property
    def epochs(self) -> int:
        return self._first + self._last

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        before = self._first if self._grids is not None else 0
        return before + self._current.epoch

    @property
    def finished(self) -> bool:
        return self.epoch >= self.epochs

    @property
    def loss(self) -> float:
        """Mean loss of the last epoch of this run; NaN before the first."""
        loss = self._current.loss
        return self._loss_with_norms if math.isnan(loss) else loss

    @property
    def network(self) -> nn.Module:
        """What is being trained, in eval mode between epochs: with norms, or on its grids."""
        return self._current.network

    def advance(self) -> bool:
        """One step; True where it completed an epoch. See ``Training.advance``."""
        if not self._current.advance():
            return False
        if self._current.finished and self._grids is None and self._last:
            self.store()
            self._loss_with_norms = self._current.loss
            self._to_integers()
        return True

    def store(self) -> None:
        """Keeps the state of the last finished epoch."""
        self._current.store()

    def result(self) -> Compressed:
        """The network as trained so far, on the grids it will be exported with; on the CPU."""
        network, plan = self._calibrated() if self._grids is None else self._grids.result()
        structure = factored_structure(self._compressor.structure, plan.ranks)
        made = on_grid(network, plan, structure)
        zeros, codebook = self._start.zeros, self._start.codebook
        thin_again(made.network, plan.weights, zeros, codebook)
        return dataclasses.replace(made, zeros=zeros, codebook=codebook)

    @property
    def _current(self) -> Training:
        assert self._training is not None
        return self._training

    def _course(self, epochs: int, peak: float, half: bool, decay: float) -> Course:
        recipe, shape = self.recipe, self._images.shape
        image = len(shape) == 3
        return Course(
            epochs=epochs,
            peak=peak,
            batch=recipe.batch,
            temperature=recipe.temperature,
            hard=recipe.hard,
            features=recipe.features if self.feature_paths else 0.0,
            feature_paths=self.feature_paths,
            decay=decay,
            augmentation=Augmentation.named(recipe.augment if image else "none", shape[-1]),
            seed=recipe.seed,
            half=half,
        )

    def _network_with_norms(self) -> nn.Module:
        """The start with its norms in place: pruned, or with the channels that are to fade out."""
        plan, compressor = self._start.plan, self._compressor
        if not self.recipe.gradual:
            return trainable(compressor.original, self._start.network, plan)
        network = copy.deepcopy(compressor.folded)
        drop_blocks(network, plan.dropped)
        return trainable(compressor.original, network, dataclasses.replace(plan, channels={}))

    def _with_norms(self) -> Training:
        recipe, plan = self.recipe, self._start.plan
        few_bits = any(scale.bits < PLAIN_BITS for scale in plan.weights.values())
        why = cannot_fade(self._compressor, self._start) if recipe.gradual else None
        if why is not None:
            raise TrainingError(f"channels cannot fade out of {why}; leave gradual out")
        network = self._network_with_norms()
        fades: tuple[InputFade, ...] = ()
        if recipe.gradual:
            fades = tuple(fade(network, plan.channels))
        else:
            round_weights(network, unfolded_scales(network, plan))
            keep_zeros(network, self._start.zeros)
        batch = min(recipe.batch, len(self._images))
        peak = peak_rate(batch, self._first, few_bits) if recipe.rate is None else recipe.rate
        half = self._device.type == "cuda" if recipe.half is None else recipe.half
        course = self._course(self._first, peak, half, recipe.decay)
        file = self._directory / STATE_FILE
        return Training(
            network, self._compressor.folded, self._images, course, file, self._device, fades
        )

    def _calibrated(self) -> tuple[nn.Module, Plan]:
        """The network as trained with norms, folded and pruned, and its plan with new grids."""
        plan = self._start.plan
        if not self._first:
            return copy.deepcopy(self._start.network), plan
        trained = self._network_with_norms()
        trained.load_state_dict(plain_state(self._current.network))
        if self.recipe.gradual:
            made = folded(trained, dataclasses.replace(plan, channels={}))
            slice_channels(made, plan.channels)
            return made, self._fresh_grids(made, {})
        made = folded(trained, plan)
        grids = folded_scales(trained, plan, grids_of(self._current.network))
        return made, self._fresh_grids(made, grids)

    def _fresh_grids(self, network: nn.Module, learned: Mapping[str, Any]) -> Plan:
        plan = self._start.plan
        if not plan.quantized:
            return plan
        choices = choices_of(plan, self._compressor)
        found = self._compressor.requantize(network, choices, plan.channels).plan
        weights = {**found.weights, **learned}
        return dataclasses.replace(plan, weights=weights, activations=found.activations)

    def _to_integers(self) -> None:
        network, self._plan = self._calibrated()
        self._grids = QuantizationAware(network, self._plan)
        keep_zeros(self._grids.inner_network, self._start.zeros)
        # Autocast would round what lies on the grids again.
        peak = folded_rate(min(self.recipe.batch, len(self._images)))
        course = self._course(self._last, peak, half=False, decay=0.0)
        file = self._directory / INTEGER_STATE_FILE
        self._training = Training(
            self._grids, self._compressor.folded, self._images, course, file, self._device
        )


def cannot_fade(compressor: Compressor, start: Compressed) -> str | None:
    """What keeps a network's channels from fading out (``gradual_pruning``) in words; None where nothing does."""
    plan = start.plan
    if any(scale.bits < PLAIN_BITS for scale in plan.weights.values()):
        return "weights of less than 8 bits"
    if start.zeros:
        return "layers with zeros"
    if plan.ranks:
        return "factored layers"
    mixing = sorted(
        path
        for path, module in compressor.folded.named_modules()
        if path in plan.channels and mixes_channels(module) and not inside(path, plan.dropped)
    )
    return f"the norm {mixing[0]}, which computes another function without them" if mixing else None


def choices_of(plan: Plan, compressor: Compressor) -> Choices:
    """The quantization a plan asks for, as choices."""
    from compressors.quantization import past_dropped

    structure = factored_structure(compressor.structure, plan.ranks)
    resolve = past_dropped(structure, plan.dropped)
    reads = {path: resolve(structure.layer(path).input) for path in plan.weights}
    return Choices(
        dropped=plan.dropped,
        integer=frozenset(plan.weights),
        weight_bits={path: scale.bits for path, scale in plan.weights.items()},
        activation_bits={path: plan.activations[site].bits for path, site in reads.items()},
    )


def finetune(finetuning: Finetuning, after_epoch: Callable[[int, nn.Module], None]) -> Compressed:
    """Runs all epochs that are left and stores each.

    Args:
        after_epoch: told the number of finished epochs and the network in eval mode; what it raises ends the
            training. Told once too where an earlier attempt had finished and could not report it.
    """
    if finetuning.finished:
        after_epoch(finetuning.epoch, finetuning.network.eval())
    while not finetuning.finished:
        if finetuning.advance():
            finetuning.store()
            after_epoch(finetuning.epoch, finetuning.network)
    return finetuning.result()
