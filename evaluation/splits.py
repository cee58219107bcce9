"""Which examples calibrate, which are searched on, which train and which test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.errors import DataError

CALIBRATION_IMAGES = 512
# Of the examples that the search may use, at most this share is searched on and calibrated with.
SEARCH_SHARE, CALIBRATION_SHARE = 0.5, 0.25
_SEED = 20180209  # of the carving; fixed, so that jobs with other seeds see the same images


@dataclass(frozen=True)
class Examples:
    """Inputs float32 [n, ...] and class indices int64 [n] in memory."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def spread(self, count: int) -> Examples:
        """So many of them, see ``spread``."""
        chosen = torch.tensor(spread(range(len(self)), count), dtype=torch.int64)
        return Examples(self.inputs[chosen], self.targets[chosen])


@dataclass(frozen=True)
class Splits:
    """Indices into the data's splits; no example is in two of them.

    Attributes:
        source: ``train`` or ``validation``: what calibration and search index into.
        calibration, search: int64, increasing.
        training: indices into ``train`` that fine-tuning may use.
    """

    source: str
    calibration: tuple[int, ...]
    search: tuple[int, ...]
    training: tuple[int, ...]


def carve(train: int, validation: int | None, search_images: int) -> Splits:
    """Splits of the given sizes.

    Calibration and search images come from ``validation`` where the data has one, else from ``train``, and are
    left out of fine-tuning. They are drawn at random: data sets are often sorted by class.

    Raises:
        DataError: fewer than 32 examples to draw from.
    """
    pool = train if validation is None else validation
    if pool < 32:
        raise DataError(
            f"{pool} examples are too few to calibrate and search on; at least 32 are needed"
        )
    order = np.random.default_rng(_SEED).permutation(pool)
    search = min(search_images, int(pool * SEARCH_SHARE))
    calibration = min(CALIBRATION_IMAGES, int(pool * CALIBRATION_SHARE))
    chosen = np.sort(order[:search])
    calibrating = np.sort(order[search : search + calibration])
    training = np.sort(order[search + calibration :]) if validation is None else np.arange(train)
    return Splits(
        "train" if validation is None else "validation",
        tuple(int(i) for i in calibrating),
        tuple(int(i) for i in chosen),
        tuple(int(i) for i in training),
    )


def spread(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """So many of the indices, evenly spread over them: the first of sorted data would be of one class. All of them
    where there are no more."""
    if count >= len(indices):
        return tuple(indices)
    places = np.linspace(0, len(indices) - 1, count).round().astype(int)
    return tuple(indices[int(place)] for place in places)


def gather(dataset: Any, indices: Sequence[int], what: str) -> Examples:
    """Examples of a data set in memory.

    Args:
        dataset: of ``(input, class index)`` pairs.
        what: its name in errors.

    Raises:
        DataError: an item is no such pair, or inputs differ in shape.
    """
    inputs, targets = [], []
    for i in indices:
        try:
            x, y = dataset[i]
            inputs.append(torch.as_tensor(x, dtype=torch.float32))
            targets.append(int(y))
        except Exception as error:
            raise DataError(
                f"item {i} of {what} is no pair of an input tensor and a class index: {type(error).__name__}: {error}"
            ) from error
    if len({tuple(x.shape) for x in inputs}) != 1:
        raise DataError(f"inputs of {what} differ in shape; resize them in the data set")
    return Examples(torch.stack(inputs), torch.tensor(targets, dtype=torch.int64))
