"""Trains a pruned network with the original as its teacher."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressors.plan import Plan
from compressors.preparation import fold_norms, unfold_norms
from compressors.pruner import Skip, drop_blocks, slice_channels

STATE_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        rate: peak learning rate of SGD with Nesterov momentum 0.9; warms up over the first twentieth, then
            falls as a cosine to zero.
        batch: images a step.
        temperature, hard: distillation loss ``(1 - hard) T^2 KL + hard CE`` (Hinton et al. 2015, arXiv
            1503.02531, section 2).
        decay: weight decay.
        augment: ``crop_flip`` (pad by an eighth, random crop, random mirror) or ``none``.
        seed: of order and augmentation.
    """

    epochs: int
    rate: float = 0.02
    batch: int = 128
    temperature: float = 4.0
    hard: float = 0.1
    decay: float = 5e-4
    augment: str = "crop_flip"
    seed: int = 0


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
    alive = [pair for pair in plan.folded if _exists(network, pair[0])]
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
    fold_norms(network, [pair for pair in plan.folded if _exists(network, pair[0])])
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


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop out of a padded image and random mirror, each image its own.

    Args:
        images: float [n, channels, height, width].
    """
    n, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = F.pad(images, (pad, pad, pad, pad))
    top = torch.randint(0, 2 * pad + 1, (n,), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (n,), generator=generator)
    rows = top.view(n, 1) + torch.arange(height)
    columns = left.view(n, 1) + torch.arange(width)
    flip = torch.rand(n, generator=generator) < 0.5
    columns[flip] = columns[flip].flip(1)
    which = torch.arange(n).view(n, 1, 1)
    return (
        padded[which, :, rows.view(n, height, 1), columns.view(n, 1, width)]
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def finetune(
    network: nn.Module,
    teacher: nn.Module,
    dataset: Any,
    indices: Sequence[int],
    recipe: Recipe,
    directory: Path,
    after_epoch: Callable[[int, nn.Module], None],
) -> nn.Module:
    """Trains in place, epoch by epoch; goes on where ``directory`` says an earlier run stopped.

    Args:
        network: from ``trainable``.
        teacher: the original, eval mode.
        dataset: of ``(input, class index)`` pairs.
        indices: what may be trained on.
        directory: gets the state after every epoch (momentum is not kept: a resumed run warms it up anew).
        after_epoch: told the number of finished epochs and the network in eval mode; what it raises ends the
            training.
    """
    start = _resume(network, directory)
    # Channels last is the faster layout for training on processors and GPUs alike; results do not depend on it.
    network.to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay
    )
    steps = max(1, math.ceil(len(indices) / recipe.batch))
    total = steps * recipe.epochs
    step = start * steps
    for epoch in range(start, recipe.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
        order = torch.randperm(len(indices), generator=generator).tolist()
        network.train()
        for first in range(0, len(order), recipe.batch):
            chosen = [dataset[indices[i]] for i in order[first : first + recipe.batch]]
            if len(chosen) < 2:
                continue  # a batch norm cannot train on one image
            images = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x, _ in chosen])
            labels = torch.tensor([int(y) for _, y in chosen])
            if recipe.augment == "crop_flip" and images.dim() == 4:
                images = augmented(images, generator)
            if images.dim() == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * _schedule(step, total)
            loss = _loss(network(images), teacher, images, labels, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            step += 1
        network.eval()
        _store(network, directory, epoch + 1)
        after_epoch(epoch + 1, network)
    if start >= recipe.epochs:
        after_epoch(
            start, network.eval()
        )  # finished by an earlier attempt that could not report it
    return network.eval()


def _loss(
    outputs: Tensor, teacher: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe
) -> Tensor:
    with torch.no_grad():
        wanted = teacher(images)
    t = recipe.temperature
    soft = F.kl_div(
        F.log_softmax(outputs / t, 1),
        F.log_softmax(wanted / t, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - recipe.hard) * t * t * soft + recipe.hard * F.cross_entropy(outputs, labels)


def _schedule(step: int, total: int) -> float:
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _resume(network: nn.Module, directory: Path) -> int:
    progress, state = directory / PROGRESS_FILE, directory / STATE_FILE
    if not (progress.exists() and state.exists()):
        return 0
    network.load_state_dict(load_file(state))
    return int(json.loads(progress.read_text())["epochs"])


def _store(network: nn.Module, directory: Path, epochs: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / (STATE_FILE + ".part")
    save_file({k: v.detach().contiguous().clone() for k, v in network.state_dict().items()}, part)
    part.replace(directory / STATE_FILE)
    (directory / PROGRESS_FILE).write_text(json.dumps({"epochs": epochs}))
