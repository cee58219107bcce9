"""Many small trainings on one device, in lots of limited time: each call goes on where the last one stopped.

One small network cannot fill a GPU. A worker therefore stacks several trainings, each a CUDA graph on a stream of its
own, and replays them in turn, so that their kernels run side by side; several workers are several processes. Between
processes a GPU only takes turns, so that stacking comes first, and processes where one core cannot launch fast enough.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from compressors.compressor import Compressed, Compressor
from compressors.errors import PlanError, TrainingError
from compressors.finetuning import Finetuning, Recipe
from compressors.loading import PLAN_FILE, WEIGHTS_FILE, rebuild, save
from compressors.plan import Plan
from compressors.preparation import prepare
from compressors.quantization import QuantizedNetwork
from compressors.training_images import TensorImages
from latency_tables.errors import TrimtabError

RESULT_FILE, PROGRESS_FILE, WORK_FILE = "result.json", "progress.json", "work.json"
# Epochs between stored states: a lot that is cut off loses at most so many of each training.
_STORE_EVERY = 10
_EVALUATION_BATCH = 500
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """One training of a lot.

    Attributes:
        name: folder of its state and result; letters, digits, ``.``, ``_`` and ``-``.
        factory: ``module:function`` that makes the original network.
        weights: safetensors file of the original's weights.
        start: folder with ``plan.json`` and ``model.safetensors`` (``loading.save``) to begin with. Below 8 bits the
            weights should be unrounded ones.
        recipe: how to train.
        keep_zeros: weights that are zero at the start, of layers that are to run in integers, stay zero.
    """

    name: str
    factory: str
    weights: Path
    start: Path
    recipe: Recipe
    keep_zeros: bool = False

    def original(self) -> nn.Module:
        """The uncompressed network, prepared.

        Raises:
            TrainingError: no such factory, or the weights do not fit it.
        """
        module, _, function = self.factory.partition(":")
        try:
            network = getattr(importlib.import_module(module), function)()
            network.load_state_dict(load_file(self.weights))
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise TrainingError(
                f"{self.factory} with {self.weights}: {type(error).__name__}: {error}"
            ) from error
        return prepare(network)

    def begin(self, original: nn.Module) -> Compressed:
        """The network and plan to start from.

        Raises:
            PlanError, PruningError: the start folder is incomplete or does not fit the original.
        """
        try:
            plan = Plan.from_json(json.loads((self.start / PLAN_FILE).read_text()))
            tensors = load_file(self.start / WEIGHTS_FILE)
        except FileNotFoundError as error:
            raise PlanError(f"no {Path(str(error.filename)).name} in {self.start}") from error
        network = rebuild(original, plan)
        network.load_state_dict(tensors)
        kept = {path: tensors[f"{path}.weight"] != 0 for path in plan.weights if self.keep_zeros}
        zeros = {path: mask for path, mask in kept.items() if not mask.all()}
        return Compressed(network, plan, zeros=zeros)


@dataclass(frozen=True)
class Lot:
    """What all workers of a lot share; travels to their processes.

    Attributes:
        jobs: in the order they are begun.
        images: file of ``TensorImages`` to train on.
        calibration: file of ``TensorImages`` that grids are calibrated on.
        directory: gets a folder a job.
        deadline: ``time.time`` after which no further epoch is begun.
        stack: trainings a worker runs at once.
        device: ``cuda`` or ``cpu``.
        held_out: file of ``TensorImages`` that finished networks are scored on.
        code_paths: put at the end of the import path, for factories.
        threads: cores a worker may use for what runs on the CPU; torch's own setting when None.
    """

    jobs: tuple[TrainingJob, ...]
    images: Path
    calibration: Path
    directory: Path
    deadline: float
    stack: int = 4
    device: str = "cpu"
    held_out: Path | None = None
    code_paths: tuple[str, ...] = ()
    threads: int | None = None


def train_lot(
    jobs: Sequence[TrainingJob],
    images: Path,
    calibration: Path,
    directory: Path,
    seconds: float,
    processes: int = 1,
    stack: int = 4,
    device: str = "cuda",
    held_out: Path | None = None,
    code_paths: Sequence[str | Path] = (),
) -> dict[str, dict[str, Any]]:
    """Trains what is unfinished for so many seconds and returns where every job stands.

    A job's folder ends with ``plan.json`` and ``model.safetensors`` (``loading.load`` reads them) and ``result.json``:
    epochs, loss, seconds and, on ``held_out`` images, accuracy and mean divergence from the original. The states of all
    are also written to ``work.json``.

    Args:
        jobs: names must differ.
        images, calibration, held_out: files written by ``TensorImages.save``.
        directory: keeps states between calls; the same one every time.
        seconds: an epoch that is running is finished first.
        processes: workers; with one everything runs in this process.
        stack: trainings a worker runs at once.
        device: ``cuda`` or ``cpu``.
        code_paths: where factories are imported from.

    Returns:
        By name ``{"state": "finished" | "unfinished" | "failed", "epoch", "epochs", ...}``; ``reason`` of a failure,
        and what ``result.json`` holds of a finished one. A failed job is tried again in the next call.

    Raises:
        TrainingError: two jobs of one name, or a worker died.
    """
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise TrainingError("two jobs of a lot have the same name")
    directory.mkdir(parents=True, exist_ok=True)
    lot = Lot(
        tuple(jobs), images, calibration, directory, time.time() + seconds, stack, device,
        held_out, tuple(str(path) for path in code_paths),
        max(1, (os.cpu_count() or 1) // max(1, processes)) if processes > 1 else None,
    )  # fmt: skip
    waiting = [k for k, job in enumerate(jobs) if not (directory / job.name / RESULT_FILE).exists()]
    died: list[int] = []
    if waiting and processes <= 1:
        work(lot, iter(waiting).__next__)
    elif waiting:
        context = multiprocessing.get_context("spawn")
        pending = context.Queue()
        for number in waiting:
            pending.put(number)
        workers = [
            context.Process(target=_work_off, args=(lot, pending))
            for _ in range(min(processes, len(waiting)))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        died = [worker.exitcode or 0 for worker in workers if worker.exitcode]
        pending.cancel_join_thread()
    states = {job.name: state_of(directory / job.name, job) for job in jobs}
    _write(directory / WORK_FILE, states)
    if died and not any(state["state"] == "finished" for state in states.values()):
        raise TrainingError(f"workers ended with exit codes {died}; see their output")
    return states


def state_of(folder: Path, job: TrainingJob) -> dict[str, Any]:
    """Where a job stands, from its folder."""
    for name, state in ((RESULT_FILE, "finished"), (PROGRESS_FILE, "unfinished")):
        if (folder / name).exists():
            found: dict[str, Any] = {"state": state, **json.loads((folder / name).read_text())}
            return found
    return {"state": "unfinished", "epoch": 0, "epochs": job.recipe.epochs}


def _work_off(lot: Lot, pending: multiprocessing.Queue[int]) -> None:
    def following() -> int:
        try:
            return pending.get(timeout=1.0)
        except queue.Empty:
            raise StopIteration from None

    work(lot, following)


def work(lot: Lot, following: Callable[[], int]) -> None:
    """One worker: stacks trainings until no job is left or the deadline has passed.

    Args:
        following: the next job's number; raises StopIteration where none is left.
    """
    for path in lot.code_paths:
        if path not in sys.path:
            sys.path.append(path)
    if lot.threads is not None:
        torch.set_num_threads(lot.threads)
    if lot.device == "cuda":
        torch.backends.cudnn.benchmark = True
    device = torch.device(lot.device)
    images = TensorImages.load(lot.images).to(device)
    bench = _Bench(lot, images, following)
    while bench.running:
        for one in list(bench.running):
            bench.advance(one)


class _Bench:
    """The trainings a worker runs at once."""

    def __init__(self, lot: Lot, images: TensorImages, following: Callable[[], int]) -> None:
        self._lot, self._images, self._following = lot, images, following
        self.running: list[_Running] = []
        self._fill()

    def advance(self, one: _Running) -> None:
        try:
            if not one.finetuning.finished and not one.finetuning.advance():
                return
            late = time.time() > self._lot.deadline
            if one.finetuning.finished:
                one.finish(self._lot.held_out)
            elif late or one.finetuning.epoch % _STORE_EVERY == 0:
                one.keep()
            if not (one.finetuning.finished or late):
                return
        except TrimtabError as error:
            one.fail(error.detail)
        self.running.remove(one)
        self._fill()

    def _fill(self) -> None:
        while len(self.running) < self._lot.stack and time.time() < self._lot.deadline:
            try:
                job = self._lot.jobs[self._following()]
            except StopIteration:
                return
            folder = self._lot.directory / job.name
            try:
                self.running.append(_Running(job, folder, self._lot, self._images))
            except TrimtabError as error:
                _write_progress(folder, 0, job.recipe.epochs, state="failed", reason=error.detail)


class _Running:
    def __init__(self, job: TrainingJob, folder: Path, lot: Lot, images: TensorImages) -> None:
        self._job, self._folder = job, folder
        folder.mkdir(parents=True, exist_ok=True)
        calibration = TensorImages.load(lot.calibration)
        original = job.original()
        compressor = Compressor(original, calibration.normalised(calibration.images), [])
        self._teacher = compressor.folded
        start = job.begin(original)
        self.finetuning = Finetuning(compressor, start, images, job.recipe, folder, lot.device)
        self._device = lot.device
        self._began = time.monotonic() - float(
            state_of(folder, job).get("seconds", 0.0) if self.finetuning.epoch else 0.0
        )

    def keep(self) -> None:
        self.finetuning.store()
        made = self.finetuning
        _write_progress(
            self._folder, made.epoch, made.epochs, loss=made.loss, seconds=self._seconds
        )
        _log.info(
            "%s: epoch %d of %d, loss %.4f, %.0f s",
            self._job.name, made.epoch, made.epochs, made.loss, self._seconds,
        )  # fmt: skip

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 1)

    def fail(self, reason: str) -> None:
        made = self.finetuning
        _write_progress(self._folder, made.epoch, made.epochs, state="failed", reason=reason)

    def finish(self, held_out: Path | None) -> None:
        """Writes the network, its plan and what it scores; the state of the training is no longer needed."""
        made = self.finetuning.result()
        save(made.network, made.plan, self._folder)
        found: dict[str, Any] = {
            "epoch": self.finetuning.epoch,
            "epochs": self.finetuning.epochs,
            "loss": self.finetuning.loss,
            "seconds": self._seconds,
            "recipe": self._job.recipe.to_json(),
        }
        if held_out is not None:
            found |= held_out_score(made, self._teacher, TensorImages.load(held_out), self._device)
        _write(self._folder / RESULT_FILE, found)
        for file in self._folder.glob("*.safetensors"):
            if file.name != WEIGHTS_FILE:
                file.unlink()


def held_out_score(
    compressed: Compressed, teacher: nn.Module, images: TensorImages, device: str
) -> dict[str, float]:
    """Accuracy of network and teacher, and the mean divergence (nats) between them, on images nobody trained on."""
    on = torch.device(device)
    images = images.to(on)
    ours = _outputs(
        QuantizedNetwork(compressed.network, compressed.plan.activations).to(on), images
    )
    theirs = _outputs(teacher.to(on), images)
    p, q = F.log_softmax(theirs.double(), 1), F.log_softmax(ours.double(), 1)
    return {
        "held_out_accuracy": float((ours.argmax(1) == images.labels).double().mean()),
        "held_out_teacher_accuracy": float((theirs.argmax(1) == images.labels).double().mean()),
        "held_out_divergence": float((p.exp() * (p - q)).sum(1).mean()),
    }


def _outputs(network: nn.Module, images: TensorImages) -> Tensor:
    precise = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            return torch.cat([network(part) for part in _parts(images)])
    finally:
        torch.backends.cudnn.allow_tf32 = precise


def _parts(images: TensorImages) -> Iterator[Tensor]:
    for part in torch.split(images.images, _EVALUATION_BATCH):
        yield images.normalised(part)


def _write_progress(folder: Path, epoch: int, epochs: int, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PROGRESS_FILE, {"epoch": epoch, "epochs": epochs, **more})


def _write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)
