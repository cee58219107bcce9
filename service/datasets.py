"""Data as splits: scikit-learn's digits, and what a factory of the operator's own gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.errors import DataError
from service.data_bundle import DataBundle
from service.source_name import suggest

# Mean and standard deviation of the digits' train split after division by 16.
DIGITS_MEAN, DIGITS_STD = 0.3051, 0.3762

_KEYS = ("train", "test", "validation", "finetune", "evaluate")


class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Images held in memory.

    Attributes:
        images: float32 [N, C, H, W].
        targets: class indices, N of them.
    """

    def __init__(self, images: Tensor, targets: list[int]) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def digits() -> DataBundle:
    """scikit-learn's 1,797 handwritten digits, 8x8 in one channel, ten classes.

    Pixels are divided by 16 and normalised with ``DIGITS_MEAN`` and ``DIGITS_STD``. Of each class,
    in file order, every fifth image (the 5th, 10th, ...) is the test split: 1,442 train and 355
    test images, stratified, the same on every machine and version.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = (loaded.images[:, None].astype(np.float32) / 16.0 - DIGITS_MEAN) / DIGITS_STD
    labels = np.asarray(loaded.target)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[4::5]] = True
    images = torch.from_numpy(pixels.astype(np.float32))

    def split(chosen: Any) -> ArrayDataset:
        return ArrayDataset(images[torch.from_numpy(chosen)], [int(v) for v in labels[chosen]])

    return DataBundle(train=split(~test), test=split(test))


def bundle_from(source: str, given: object) -> DataBundle:
    """Checks what a data factory gave.

    Raises:
        DataError: no mapping, a split missing or empty, an unknown key, or splits that do not fit
            together.
    """
    if not isinstance(given, Mapping):
        raise DataError(
            f"{source}: the data factory gave {type(given).__name__}, not a dict of splits"
        )
    unknown = [str(key) for key in given if key not in _KEYS]
    if unknown:
        hint = suggest(unknown[0], _KEYS)
        raise DataError(f"{source}: unknown split {unknown[0]!r}{hint}; known: {', '.join(_KEYS)}")
    for key in ("train", "test"):
        if given.get(key) is None:
            raise DataError(f"{source}: the data factory gave no {key!r} split")
    for key in ("train", "test", "validation", "finetune"):
        split = given.get(key)
        if split is None:
            continue
        if not hasattr(split, "__len__") or not hasattr(split, "__getitem__"):
            raise DataError(f"{source}: split {key!r} has no length or cannot be indexed")
        if len(split) == 0:
            raise DataError(f"{source}: split {key!r} is empty")
    finetune = given.get("finetune")
    if finetune is not None and len(finetune) != len(given["train"]):
        raise DataError(
            f"{source}: split 'finetune' has {len(finetune)} examples and 'train' "
            f"{len(given['train'])}; it must be the same examples in the same order"
        )
    evaluate = given.get("evaluate")
    if evaluate is not None and not callable(evaluate):
        raise DataError(f"{source}: 'evaluate' is not callable")
    return DataBundle(given["train"], given["test"], given.get("validation"), finetune, evaluate)
