"""One training with a teacher, step by step: resumable exactly on the CPU, recorded as a CUDA graph on a GPU.

Small networks leave a GPU idle between kernels: launching them takes longer than running them. Here everything a step
needs lies on the device (images as bytes, the epoch's draws, every step's learning rate), so that a whole step, teacher
and optimizer included, is one CUDA graph, replayed without Python. Several trainings can share a GPU, each on a
stream of its own (``compressors.lots``).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressors.augmentation import Augmentation, augmented, epoch_draws
from compressors.distillation import feature_loss, logit_loss, tapped
from compressors.errors import TrainingError
from compressors.gradual_pruning import InputFade
from compressors.schedule import cosine_rates, cubic_shares
from compressors.training_images import TensorImages, TrainingImages

MOMENTUM, LARGEST_GRADIENT = 0.9, 5.0
# Steps before a graph is recorded: libraries choose their kernels and allocate in them.
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Course:
    """What one training does, settled before it begins.

    Attributes:
        epochs: passes over the images.
        peak: highest learning rate; see ``schedule`` for its course.
        batch: images a step; all of them where there are fewer.
        temperature, hard: see ``distillation.logit_loss``.
        features: weight of ``distillation.feature_loss``; 0 leaves it out.
        feature_paths: modules, of student and teacher, whose outputs it compares.
        decay: weight decay, on weights of more than one dimension alone.
        augmentation: see there.
        seed: of order and augmentation.
        half: compute in bfloat16 where that is safe (autocast; no loss scaling, bfloat16 has float32's range).
    """

    epochs: int
    peak: float
    batch: int = 128
    temperature: float = 4.0
    hard: float = 0.1
    features: float = 0.0
    feature_paths: tuple[str, ...] = ()
    decay: float = 5e-4
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    half: bool = False


class Training:
    """Trains a network in place by stochastic gradient descent with Nesterov momentum.

    A run that was stored after some epoch and goes on in another process gives, on the CPU, the same weights to the
    last bit as one that was never interrupted: every random number depends on seed and epoch alone, and momentum is
    stored beside the weights.

    Dropout and drop path are off: a compressed network lacks capacity, it does not have too much.

    Args:
        network: what is called and trained; moved to the device. Where it wraps another one as ``inner_network``
            (``qat.QuantizationAware``), features are tapped there.
        teacher: gives the outputs to be matched, in eval mode.
        images: what to train on.
        course: how.
        file: holds the state between runs.
        device: where to train.
        fades: channels that fade out (``gradual_pruning``).

    Raises:
        TrainingError: the file is damaged, or was left by another course.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        images: TrainingImages,
        course: Course,
        file: Path,
        device: str | torch.device = "cpu",
        fades: tuple[InputFade, ...] = (),
    ) -> None:
        self.device = torch.device(device)
        self.course, self.file = course, file
        self.network: nn.Module = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._core: nn.Module = getattr(self.network, "inner_network", self.network)
        self._teacher = copy.deepcopy(teacher).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._teacher.eval()
        self._images = images.to(self.device) if isinstance(images, TensorImages) else images
        self._batch = min(course.batch, len(images))
        self.steps = len(images) // self._batch
        self._fades = fades
        self._rates = cosine_rates(self.steps * course.epochs, course.peak).to(self.device)
        self._shares = cubic_shares(self.steps * course.epochs).to(self.device)
        self._rate = torch.zeros((), device=self.device)
        self._optimizer = self._make_optimizer()
        self._cursor = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._total = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._loss = torch.zeros((), device=self.device)
        self._draws = torch.zeros((self.steps, self._batch, 6), dtype=torch.int64)
        self._draws = self._draws.to(self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = _stream_on(self.device)
        self.epoch = 0
        self._step = 0
        self.loss = math.nan
        self._resume()
        if self._stream is not None:
            # What was made on the default stream must be there before the own one reads it.
            torch.cuda.synchronize(self.device)

    @property
    def finished(self) -> bool:
        return self.epoch >= self.course.epochs

    def advance(self) -> bool:
        """One step; True where it completed an epoch. On a GPU it returns before the step has run.

        Raises:
            TrainingError: the loss is not finite at the end of an epoch.
        """
        with self._on_stream():
            if self._step == 0:
                self._begin_epoch()
            if self._stream is not None and self._images.on_device:
                if self._graph is None:
                    self._record()
                assert self._graph is not None
                self._graph.replay()
            else:
                self._one_step()
            self._step += 1
            if self._step < self.steps:
                return False
            self._end_epoch()
            return True

    def run(self) -> None:
        """All epochs that are left, storing after each."""
        while not self.finished:
            if self.advance():
                self.store()

    def store(self) -> None:
        """Writes weights, statistics and momentum as they were at the end of the last epoch, whole or not at all."""
        with self._on_stream():
            tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
            for number, parameter in enumerate(self._parameters()):
                tensors[f"momentum.{number}"] = self._optimizer.state[parameter]["momentum_buffer"]
            copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        save_file(copies, part, {"epoch": str(self.epoch), "course": self._identity()})
        part.replace(self.file)

    def _identity(self) -> str:
        """What a stored state depends on: another course, other images or other parameters are another training."""
        shapes = [list(p.shape) for p in self._parameters()]
        return f"{self.course!r} on {len(self._images)} images, parameters {shapes}"

    def _resume(self) -> None:
        if not self.file.exists():
            return
        try:
            with safe_open(self.file, "pt") as stored:
                facts = stored.metadata() or {}
            tensors = load_file(self.file)
        except SafetensorError as error:
            raise TrainingError(
                f"{self.file} is damaged ({error}); delete it to start anew"
            ) from error
        if facts.get("course") != self._identity():
            raise TrainingError(
                f"{self.file} belongs to another training; delete it or use another folder"
            )
        self.epoch = int(facts["epoch"])
        state = {
            k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")
        }
        self.network.load_state_dict(state)
        for number, parameter in enumerate(self._parameters()):
            self._optimizer.state[parameter]["momentum_buffer"].copy_(tensors[f"momentum.{number}"])
        self._total.fill_(self.epoch * self.steps)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def _make_optimizer(self) -> torch.optim.SGD:
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        parameters = self._parameters()
        matrices = [p for p in parameters if p.dim() > 1]
        vectors = [p for p in parameters if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.course.decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=self._rate, momentum=MOMENTUM, nesterov=True, fused=True,
        )  # fmt: skip
        for parameter in parameters:
            # Zeros are what an empty buffer stands for; a graph needs them where they will stay.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def _begin_epoch(self) -> None:
        drawn = epoch_draws(
            len(self._images), self._batch, self.course.augmentation, self._images.shape,
            self.course.seed, self.epoch,
        )  # fmt: skip
        if self._stream is not None:
            drawn = drawn.pin_memory()
        self._draws.copy_(drawn, non_blocking=True)
        self._cursor.zero_()
        self._loss.zero_()
        self._training_mode()

    def _training_mode(self) -> None:
        self.network.train()
        for module in self.network.modules():
            if "Drop" in type(module).__name__:
                module.eval()

    def _end_epoch(self) -> None:
        self._step = 0
        self.epoch += 1
        self.loss = self._loss.item() / self.steps
        if not math.isfinite(self.loss):
            raise TrainingError(
                f"the loss is {self.loss} after epoch {self.epoch} of {self.course.epochs}: the training diverged"
            )
        self.network.eval()

    def _one_step(self) -> None:
        draws = self._draws.index_select(0, self._cursor)[0]
        self._rate.copy_(self._rates.index_select(0, self._total)[0])
        for fade in self._fades:
            fade.share.copy_(self._shares.index_select(0, self._total)[0])
        images, labels = self._images.batch(draws[:, 0], self.device)
        images = augmented(images, draws, self.course.augmentation)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of(images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters(), LARGEST_GRADIENT)
        self._optimizer.step()
        self._loss += loss.detach()
        self._cursor += 1
        self._total += 1

    def _loss_of(self, images: Tensor, labels: Tensor) -> Tensor:
        course = self.course
        paths = course.feature_paths if course.features else ()
        # The cache of autocast keeps casts of weights beyond a recorded step.
        half = torch.autocast(
            self.device.type, torch.bfloat16, enabled=course.half, cache_enabled=False
        )
        with half:
            with torch.no_grad(), tapped(self._teacher, paths) as theirs:
                wanted = self._teacher(images)
            with tapped(self._core, paths) as ours:
                outputs = self.network(images)
        loss = logit_loss(outputs, wanted, labels, course.temperature, course.hard)
        if paths:
            loss = loss + course.features * feature_loss(ours, theirs)
        return loss

    def _record(self) -> None:
        """Records one step as a CUDA graph; warming up must leave no trace in the training."""
        assert self._stream is not None
        moving = [*self.network.state_dict().values(), self._cursor, self._total, self._loss]
        moving += [self._optimizer.state[p]["momentum_buffer"] for p in self._parameters()]
        before = [tensor.clone() for tensor in moving]
        total = self._total.clone()
        for _ in range(_WARM_UP_STEPS):
            self._one_step()
            self._cursor.zero_()
            self._total.copy_(total)
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize(self.device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._one_step()
        for tensor, value in zip(moving, before, strict=True):
            tensor.copy_(value)


def _stream_on(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
