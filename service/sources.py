"""Where networks and data come from, and which of them the operator allows.

timm and torchvision networks, the digits and the demo's network are built in. Everything else is
the operator's word: a pattern for Python factories, a registered folder for images, a folder for
torchvision's data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from service import networks
from service.data_bundle import DataBundle
from service.errors import SourceError
from service.image_sets import (
    IMAGE_OPTIONS,
    check_torchvision_set,
    imagefolder,
    torchvision_set,
)
from service.python_factory import PythonFactory
from service.source_name import SourceName, suggest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BUILT_IN", "DataBundle", "Sources"]

MODEL_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "timm": "timm:NAME",
        "torchvision": "torchvision:NAME",
        "python": "python:MODULE:FACTORY",
    }
)
DATA_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "digits": "digits",
        "imagefolder": "imagefolder:NAME",
        "torchvision": "torchvision:NAME",
        "python": "python:MODULE:FACTORY",
    }
)

# Python factories of ours that need no permission.
BUILT_IN = ("python:service.demo_networks:digits_cnn",)


class Sources:
    """Checks and loads sources. Plain data inside, so it travels to other processes.

    Args:
        allow: patterns ``python:MODULE`` (what that module defines), ``python:MODULE:FACTORY`` (one
            factory) or ``python:*`` (everything; the command line's own setting).
        code_paths: folders appended to the end of the import path.
        image_folders: name to folder for ``imagefolder:NAME``.
        torchvision_root: where ``torchvision:NAME`` data lives and is downloaded to; None refuses
            them.

    Raises:
        SourceError: a pattern or a folder that cannot be right.
    """

    def __init__(
        self,
        allow: Sequence[str] = (),
        code_paths: Sequence[Path] = (),
        image_folders: Mapping[str, Path] = MappingProxyType({}),
        torchvision_root: Path | None = None,
    ) -> None:
        for pattern in allow:
            _check_pattern(pattern)
        for folder in code_paths:
            if not Path(folder).is_dir():
                raise SourceError(f"code path {str(folder)!r} is no folder")
        self.allow = (*allow, *BUILT_IN)
        self.code_paths = tuple(Path(folder).resolve() for folder in code_paths)
        self.image_folders = {name: Path(folder) for name, folder in image_folders.items()}
        self.torchvision_root = None if torchvision_root is None else Path(torchvision_root)

    def check_model(self, source: str) -> None:
        """Checks a model source without loading it.

        Raises:
            SourceError: malformed, unknown, not allowed, or a bad option.
        """
        name = SourceName.parse(source, MODEL_FORMS)
        if name.kind == "python":
            self._python(name).check()
        else:
            networks.check_network(name)

    def check_data(self, source: str) -> None:
        """Checks a data source without loading it.

        Raises:
            SourceError: malformed, unknown, not allowed or not registered, or a bad option.
        """
        name = SourceName.parse(source, DATA_FORMS)
        if name.kind == "python":
            self._python(name).check()
        elif name.kind == "imagefolder":
            name.typed_options(IMAGE_OPTIONS)
            self._folder(name)
        elif name.kind == "torchvision":
            name.typed_options(IMAGE_OPTIONS)
            check_torchvision_set(name.name)
            self._torchvision_root(name)
        else:
            name.typed_options({})

    def model_factory(self, source: str) -> Callable[[], nn.Module]:
        """A factory of the network with random weights; it can be pickled for other processes.

        Raises:
            SourceError: as ``check_model``; the factory itself raises it when building fails.
        """
        name = SourceName.parse(source, MODEL_FORMS)
        python = self._python(name) if name.kind == "python" else None
        return networks.network_factory(name, python)

    def default_input(self, source: str) -> tuple[int, int, int] | None:
        """Channels, height and width of a timm or torchvision network; None for ``python``."""
        return networks.default_input(SourceName.parse(source, MODEL_FORMS))

    def data(self, source: str) -> DataBundle:
        """Loads the splits.

        Raises:
            SourceError: as ``check_data``, or the factory fails.
            DataError: a split is missing, empty or unusable.
        """
        from service.datasets import bundle_from, digits

        self.check_data(source)
        name = SourceName.parse(source, DATA_FORMS)
        if name.kind == "digits":
            return digits()
        if name.kind == "python":
            return bundle_from(source, self._python(name)())
        size = name.typed_options(IMAGE_OPTIONS).get("size")
        if name.kind == "imagefolder":
            return imagefolder(name.name, self._folder(name), int(size or 224))
        root = self._torchvision_root(name)
        return torchvision_set(name.name, root, None if size is None else int(size))

    def _python(self, name: SourceName) -> PythonFactory:
        name.typed_options({})
        by_name = f"python:{name.name}:{name.factory}" in self.allow or "python:*" in self.allow
        if not by_name and f"python:{name.name}" not in self.allow:
            raise SourceError(
                f"{name.text!r} is not allowed here; the operator can allow it when the server "
                f"starts, with --allow python:{name.name}"
            )
        return PythonFactory(name.name, name.factory, self.code_paths, own_only=not by_name)

    def _folder(self, name: SourceName) -> Path:
        if name.name not in self.image_folders:
            hint = suggest(name.name, self.image_folders)
            known = ", ".join(sorted(self.image_folders)) or "none"
            raise SourceError(
                f"no image folder is registered as {name.name!r}{hint}; registered: {known} "
                f"(the operator registers one with --allow imagefolder:{name.name}=DIR)"
            )
        return self.image_folders[name.name]

    def _torchvision_root(self, name: SourceName) -> Path:
        if self.torchvision_root is None:
            raise SourceError(
                f"{name.text!r} is not allowed here; the operator can allow torchvision's data "
                "sets when the server starts, with --allow torchvision"
            )
        return self.torchvision_root


def _check_pattern(pattern: str) -> None:
    if pattern == "python:*":
        return
    text = pattern if pattern.count(":") != 1 else f"{pattern}:x"
    try:
        SourceName.parse(text, {"python": "python:MODULE[:FACTORY]"})
    except SourceError as error:
        raise SourceError(
            f"cannot allow {pattern!r}: use python:MODULE, python:MODULE:FACTORY or python:*"
        ) from error
