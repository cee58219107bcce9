"""Trimtab's public face: ``trimtab.load`` rebuilds a compressed network, ``trimtab.__version__`` names the version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressors.loading import load as load

__all__ = ["__version__", "load"]

try:
    __version__ = version("trimtab")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    # Imported on demand: the command line answers --help without loading torch.
    if name == "load":
        from compressors.loading import load

        return load
    raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
