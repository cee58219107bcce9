"""Images by name: folders the operator registered, and torchvision's data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import DataError
from service.data_bundle import DataBundle
from service.errors import SourceError
from service.source_name import suggest

# Options of ``imagefolder:NAME`` and ``torchvision:NAME``: side of the square image in pixels.
IMAGE_OPTIONS: dict[str, tuple[type, float, float]] = {"size": (int, 8, 1024)}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagefolder(name: str, root: Path, size: int = 224) -> DataBundle:
    """A folder with ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``), one folder a class.

    Images become RGB, the shorter side is resized to ``size / 0.875`` (256 for 224, bilinear), the
    centre ``size`` x ``size`` is cut out, scaled to 0..1 and normalised with ImageNet's mean and
    standard deviation. Where ``test`` exists, ``val`` (or ``validation``) beside it becomes the
    validation split.

    Raises:
        DataError: a split is missing or empty, or the splits disagree about the classes.
    """
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise DataError(f"imagefolder:{name}: the registered folder is gone")
    folders = {split: root / split for split in ("train", "test", "val", "validation")}
    present = {split: path for split, path in folders.items() if path.is_dir()}
    held_out = [split for split in ("val", "validation") if split in present]
    if "train" not in present:
        raise DataError(f"imagefolder:{name} has no folder train/")
    if "test" not in present and not held_out:
        raise DataError(f"imagefolder:{name} has no folder test/ (or val/)")
    transform = _image_transform(size)
    loaded: dict[str, Any] = {}
    for split, path in present.items():
        try:
            loaded[split] = ImageFolder(str(path), transform=transform)
        except FileNotFoundError as error:
            reason = str(error).replace(str(path), f"{split}/")
            raise DataError(f"imagefolder:{name}: {reason}") from error
        if loaded[split].classes != loaded["train"].classes:
            odd = sorted(set(loaded[split].classes) ^ set(loaded["train"].classes))
            raise DataError(
                f"imagefolder:{name}: train/ and {split}/ have different classes: "
                + ", ".join(odd[:5])
            )
    if "test" in loaded:
        return DataBundle(
            loaded["train"], loaded["test"], loaded[held_out[0]] if held_out else None
        )
    return DataBundle(loaded["train"], loaded[held_out[0]])


@dataclass(frozen=True, slots=True)
class TorchvisionSet:
    """How a torchvision data set names its splits and what its images look like.

    Attributes:
        splits: keyword and its values for train, test and (or None) validation.
        size: side in pixels the images are brought to, unless the source says ``?size=``.
        native: images already have this size; they are only converted and normalised.
        mean, std: per channel, of pixels scaled to 0..1.
    """

    splits: tuple[str, Any, Any, Any]
    size: int
    native: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


_BOOL: tuple[str, Any, Any, Any] = ("train", True, False, None)
_SPLIT: tuple[str, Any, Any, Any] = ("split", "train", "test", None)
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)

TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "CIFAR10": TorchvisionSet(_BOOL, 32, True, *_CIFAR10),
    "CIFAR100": TorchvisionSet(_BOOL, 32, True, *_CIFAR100),
    "MNIST": TorchvisionSet(_BOOL, 28, True, (0.1307,), (0.3081,)),
    "FashionMNIST": TorchvisionSet(_BOOL, 28, True, (0.2860,), (0.3530,)),
    "KMNIST": TorchvisionSet(_BOOL, 28, True, (0.1918,), (0.3483,)),
    "SVHN": TorchvisionSet(_SPLIT, 32, True, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "STL10": TorchvisionSet(_SPLIT, 96, True, *_IMAGENET),
    "GTSRB": TorchvisionSet(_SPLIT, 48, False, *_IMAGENET),
    "Food101": TorchvisionSet(_SPLIT, 224, False, *_IMAGENET),
    "Flowers102": TorchvisionSet(("split", "train", "test", "val"), 224, False, *_IMAGENET),
    "OxfordIIITPet": TorchvisionSet(("split", "trainval", "test", None), 224, False, *_IMAGENET),
    "FGVCAircraft": TorchvisionSet(("split", "train", "test", "val"), 224, False, *_IMAGENET),
    "DTD": TorchvisionSet(("split", "train", "test", "val"), 224, False, *_IMAGENET),
    "Imagenette": TorchvisionSet(("split", "train", "val", None), 224, False, *_IMAGENET),
}


def check_torchvision_set(name: str) -> None:
    """Raises SourceError when torchvision has no such set or this version cannot split it."""
    if name not in TORCHVISION_SETS:
        hint = suggest(name, TORCHVISION_SETS)
        raise SourceError(
            f"unknown data set torchvision:{name}{hint}; known: {', '.join(TORCHVISION_SETS)}"
        )


def torchvision_set(name: str, root: Path, size: int | None = None) -> DataBundle:
    """One of ``TORCHVISION_SETS``, read from ``root`` and downloaded into it where it is missing.

    Images of their native size are scaled to 0..1 and normalised with the set's own mean and
    standard deviation; others, and all of them when ``size`` is given, are resized and cut as
    ``imagefolder`` does.

    Raises:
        DataError: the set is not there and cannot be downloaded.
    """
    from torchvision import datasets

    check_torchvision_set(name)
    known = TORCHVISION_SETS[name]
    keyword, train, test, validation = known.splits
    transform = (
        _tensor_transform(known.mean, known.std)
        if known.native and size in (None, known.size)
        else _image_transform(size or known.size, known.mean, known.std)
    )
    make = getattr(datasets, name)

    def split(value: Any) -> Any:
        arguments = {keyword: value, "transform": transform}
        root.mkdir(parents=True, exist_ok=True)
        try:
            return make(str(root), download=False, **arguments)
        except (RuntimeError, OSError):
            pass
        try:
            return make(str(root), download=True, **arguments)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"torchvision:{name} is not in the operator's folder and its download failed: "
                f"{reason}"
            ) from error

    return DataBundle(split(train), split(test), None if validation is None else split(validation))


def _image_transform(
    size: int, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            *([transforms.Lambda(_rgb)] if len(mean) == 3 else []),
            transforms.Resize(round(size / 0.875)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def _tensor_transform(mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])


def _rgb(image: Any) -> Any:
    return image.convert("RGB")
