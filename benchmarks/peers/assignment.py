"""What a peer is given: a trained network, the images it may use, a seed. Read in the peer's own environment."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE, IMAGES_FILE = "assignment.json", "images.safetensors"
_BATCH = 100


@dataclass(frozen=True)
class Assignment:
    """See the module's docstring.

    Attributes:
        network: a factory of the zoo's module ``cifar_zoo``.
        zoo: folder of that module, with ``weights/NETWORK.safetensors``.
        images: safetensors file of ``calibration`` and ``inputs`` float32 [n, C, H, W] and ``targets`` int64 [n]: what
            a job of ours calibrates with and scores on, normalised.
        model: the uncompressed network as an ONNX file of batch 1, norms folded.
        seed: of whatever the peer draws.
    """

    network: str
    zoo: Path
    images: Path
    model: Path
    seed: int = 0

    def original(self) -> nn.Module:
        """The trained network in eval mode."""
        if str(self.zoo) not in sys.path:
            sys.path.append(str(self.zoo))
        network = getattr(importlib.import_module("cifar_zoo"), self.network)()
        network.load_state_dict(load_file(self.zoo / "weights" / f"{self.network}.safetensors"))
        assert isinstance(network, nn.Module)
        return network.eval()

    def calibration(self) -> Tensor:
        return load_file(self.images)["calibration"]

    def search(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first ``count`` search images, all where it is None, with their classes."""
        tensors = load_file(self.images)
        return tensors["inputs"][:count], tensors["targets"][:count]

    def write(self, folder: Path) -> Path:
        """Writes the assignment; its images are written by ``ours.assign``."""
        file = folder / FILE
        own = {name: str(getattr(self, name)) for name in ("network", "zoo", "images", "model")}
        file.write_text(json.dumps({**own, "seed": self.seed}, indent=1))
        return file

    @classmethod
    def read(cls, file: Path) -> Assignment:
        data: dict[str, Any] = json.loads(file.read_text())
        paths = (Path(data[name]) for name in ("zoo", "images", "model"))
        return cls(data["network"], *paths, int(data["seed"]))


def write_images(file: Path, calibration: Tensor, inputs: Tensor, targets: Tensor) -> None:
    """Writes the images of an assignment."""
    tensors = {"calibration": calibration, "inputs": inputs, "targets": targets}
    # Copies: views of one tensor cannot be stored.
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)


def layers_of(network: nn.Module) -> list[str]:
    """Paths of the layers that have weights to quantize."""
    return [path for path, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def batches(*tensors: Tensor, size: int = _BATCH) -> list[tuple[Tensor, ...]]:
    """Tensors of one length in batches, as loaders give them."""
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


def outputs_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs float32 [n, classes]."""
    with torch.no_grad():
        return torch.cat([network(part) for (part,) in batches(inputs)])


def accuracy_of(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of the images that a network classifies rightly."""
    return float((outputs_of(network, inputs).argmax(1) == targets).double().mean())
