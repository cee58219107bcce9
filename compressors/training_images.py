"""Images to train on: whole in the memory of a device, or read from a data set as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressors.errors import TrainingError


class TrainingImages(Protocol):
    """Numbered pairs of an input and a class index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""

    @property
    def on_device(self) -> bool:
        """Whether a batch is made without leaving the device, so that a step can be recorded as a CUDA graph."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs float32 [n, ...] and class indices int64 [n] of the given rows int64 [n], on the device."""


class DatasetImages:
    """Reads a data set of ``(input, class index)`` pairs item by item; satisfies ``TrainingImages``.

    Args:
        dataset: see above.
        indices: items that may be trained on.

    Raises:
        TrainingError: no items, or fewer than a batch norm can train on.
    """

    on_device = False

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        if len(indices) < 2:
            raise TrainingError(
                f"{len(indices)} images are too few to train on; at least 2 are needed"
            )
        self._dataset, self._indices = dataset, indices
        self.shape = tuple(torch.as_tensor(dataset[indices[0]][0]).shape)

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        chosen = [self._dataset[self._indices[row]] for row in rows.tolist()]
        images = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x, _ in chosen])
        labels = torch.tensor([int(y) for _, y in chosen])
        return images.to(device), labels.to(device)


class TensorImages:
    """All images in one tensor; satisfies ``TrainingImages``.

    Args:
        images: uint8 or float32 [n, C, H, W].
        labels: int64 [n].
        mean, std: of the channels; bytes become ``(x / 255 - mean) / std``, real numbers stay as they are.

    Raises:
        TrainingError: lengths differ, or fewer than two images.
    """

    on_device = True

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        if len(images) != len(labels) or len(images) < 2:
            raise TrainingError(
                f"{len(images)} images and {len(labels)} labels: at least two of each, as many of both"
            )
        if images.dtype == torch.uint8 and not (len(mean) == len(std) == images.shape[1]):
            raise TrainingError(
                f"images of bytes need the mean and deviation of their {images.shape[1]} channels"
            )
        self.images, self.labels = images, labels
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32) for v in (mean, std))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> TensorImages:
        """The same images on a device."""
        moved = TensorImages.__new__(TensorImages)
        for name in ("images", "labels", "mean", "std"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.images.device)
        images = self.normalised(self.images.index_select(0, rows))
        return images.to(device), self.labels.index_select(0, rows).to(device)

    def normalised(self, images: Tensor) -> Tensor:
        """Float32 inputs of the network."""
        if images.dtype != torch.uint8:
            return images
        return (images.float() / 255 - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def subset(self, rows: Sequence[int] | Tensor) -> TensorImages:
        """Some of the images."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        return TensorImages(
            self.images[chosen], self.labels[chosen], self.mean.tolist(), self.std.tolist()
        )

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        tensors = {"images": self.images, "labels": self.labels, "mean": self.mean, "std": self.std}
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> TensorImages:
        """Reads what ``save`` wrote.

        Raises:
            TrainingError: no such file, or another kind of file.
        """
        try:
            found = load_file(path)
            return cls(
                found["images"], found["labels"], found["mean"].tolist(), found["std"].tolist()
            )
        except FileNotFoundError:
            raise TrainingError(f"no file of images at {path}") from None
        except (SafetensorError, KeyError) as error:
            raise TrainingError(f"{path} is no file of images: {error}") from error
