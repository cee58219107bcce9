"""Takes channels and blocks out of a network, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressors.errors import PruningError
from compressors.preparation import set_submodule
from compressors.slices import cut

# path -> axis -> kept positions, increasing; see ``slices`` for paths and axes
Channels = dict[str, dict[str, tuple[int, ...]]]


class Skip(nn.Module):
    """Stands where a residual block was dropped: hands its first argument through."""

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return x


def drop_blocks(network: nn.Module, paths: tuple[str, ...]) -> None:
    """Replaces residual blocks by ``Skip``.

    Raises:
        PruningError: no such module.
    """
    for path in paths:
        try:
            network.get_submodule(path)
        except AttributeError:
            raise PruningError(
                f"the network has no block {path!r}; it is not the one the plan was made for"
            ) from None
        set_submodule(network, path, Skip())


def slice_channels(network: nn.Module, channels: Channels) -> None:
    """Keeps only the given positions of each module or parameter.

    What lies inside a dropped block no longer exists and is passed over.

    Raises:
        PruningError: a module is missing, of a kind that cannot be sliced, or has fewer channels than a position.
    """
    gone = [path for path, module in network.named_modules() if isinstance(module, Skip)]
    for path, axes in channels.items():
        if any(path == block or path.startswith(block + ".") for block in gone):
            continue
        for axis, positions in axes.items():
            try:
                cut(network, path, axis, torch.tensor(positions, dtype=torch.long))
            except AttributeError:
                raise PruningError(
                    f"the network has no module {path!r}; it is not the one the plan was made for"
                ) from None
            except IndexError as error:
                raise PruningError(
                    f"{path}: kept channels do not fit the network: {error}"
                ) from error
