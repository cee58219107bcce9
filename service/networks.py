"""Networks by name: timm and torchvision without weights, and the operator's own factories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from service.errors import SourceError
from service.python_factory import PythonFactory
from service.source_name import Option, SourceName, suggest

if TYPE_CHECKING:
    from torch import nn

# Numbers only, each in a range a machine can hold: an option never names a file, a URL or code.
TIMM_OPTIONS: dict[str, tuple[type, float, float]] = {
    "num_classes": (int, 1, 100_000),
    "in_chans": (int, 1, 64),
    "img_size": (int, 8, 2048),
    "drop_rate": (float, 0.0, 0.99),
    "drop_path_rate": (float, 0.0, 0.99),
}
TORCHVISION_OPTIONS: dict[str, tuple[type, float, float]] = {
    "num_classes": (int, 1, 100_000),
    "image_size": (int, 8, 2048),
    "width_mult": (float, 0.05, 4.0),
    "dropout": (float, 0.0, 0.99),
    "aux_logits": (bool, 0, 1),
    "init_weights": (bool, 0, 1),
}


@dataclass(frozen=True, slots=True)
class NetworkFactory:
    """Builds a network with random weights. Plain data, so it travels to other processes.

    Attributes:
        source: as the user wrote it, for messages.
        build: gives the object.
    """

    source: str
    build: Callable[[], Any]

    def __call__(self) -> nn.Module:
        """Raises SourceError when the network cannot be built or is no ``torch.nn.Module``."""
        from torch import nn

        network = self.build()
        if not isinstance(network, nn.Module):
            raise SourceError(
                f"{self.source!r}: the factory gave {type(network).__name__}, not a torch.nn.Module"
            )
        return network


@dataclass(frozen=True, slots=True)
class LibraryNetwork:
    """A timm or torchvision network without pretrained weights."""

    source: str
    kind: str
    name: str
    options: tuple[tuple[str, Option], ...]

    def __call__(self) -> Any:
        try:
            if self.kind == "timm":
                import timm

                return timm.create_model(self.name, pretrained=False, **dict(self.options))
            from torchvision import models

            return models.get_model(self.name, weights=None, **dict(self.options))
        except Exception as error:
            reason = " ".join(str(error).split())
            raise SourceError(f"{self.source!r} cannot be built: {reason}") from error


def network_factory(source: SourceName, python: PythonFactory | None) -> NetworkFactory:
    """The factory of a checked source; ``python`` is given for the kind ``python``."""
    if source.kind == "python":
        if python is None:
            raise ValueError("a python source needs its factory")
        return NetworkFactory(source.text, python)
    options = check_network(source)
    return NetworkFactory(
        source.text, LibraryNetwork(source.text, source.kind, source.name, tuple(options.items()))
    )


def check_network(source: SourceName) -> dict[str, Option]:
    """Checks the name and options of a timm or torchvision network; returns the options.

    Raises:
        SourceError: no such network (with the closest name), or a bad option.
    """
    known = _timm_names() if source.kind == "timm" else _torchvision_names()
    if source.name not in known:
        raise SourceError(
            f"{source.kind} has no network {source.name!r}{suggest(source.name, known)}"
        )
    allowed = TIMM_OPTIONS if source.kind == "timm" else TORCHVISION_OPTIONS
    return source.typed_options(allowed)


def default_input(source: SourceName) -> tuple[int, int, int] | None:
    """Channels, height and width a timm or torchvision network is made for; None for ``python``."""
    if source.kind == "python":
        return None
    options = check_network(source)
    if source.kind == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(source.name)
        channels, height, width = config.input_size if config else (3, 224, 224)
        size = options.get("img_size")
        channels = options.get("in_chans", channels)
    else:
        channels, height, width = 3, *_torchvision_size(source.name)
        size = options.get("image_size")
    if size is not None:
        height = width = size
    return int(channels), int(height), int(width)


@cache
def _timm_names() -> frozenset[str]:
    # Only names timm itself lists: it would take "hf-hub:..." or "local-dir:..." for something to
    # fetch.
    import timm

    return frozenset(timm.list_models()) | frozenset(timm.list_pretrained())


@cache
def _torchvision_names() -> frozenset[str]:
    from torchvision import models

    return frozenset(models.list_models(module=models))


def _torchvision_size(name: str) -> tuple[int, int]:
    from torchvision import models

    crop = next(iter(models.get_model_weights(name))).transforms().crop_size
    height, width = (crop * 2)[:2] if isinstance(crop, list) else (crop, crop)
    return int(height), int(width)
