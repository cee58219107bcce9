"""Takes channels and blocks out of a network, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressors.errors import PruningError
from compressors.preparation import set_submodule

# module path -> axis ("out", "in", "both") -> kept positions, increasing
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
    """Keeps only the given positions of each module.

    Modules inside a dropped block no longer exist and are passed over.

    Raises:
        PruningError: a module is missing, of a kind that cannot be sliced, or has fewer channels than a position.
    """
    modules = dict(network.named_modules())
    gone = tuple(path for path, module in modules.items() if isinstance(module, Skip))
    for path, axes in channels.items():
        if any(path.startswith(block + ".") for block in gone):
            continue
        module = modules.get(path)
        if module is None:
            raise PruningError(
                f"the network has no module {path!r}; it is not the one the plan was made for"
            )
        for axis, positions in axes.items():
            try:
                _slice(module, axis, torch.tensor(positions, dtype=torch.long))
            except IndexError as error:
                raise PruningError(
                    f"{path}: kept channels do not fit the network: {error}"
                ) from error


def _slice(module: nn.Module, axis: str, keep: Tensor) -> None:
    count = len(keep)
    if isinstance(module, nn.Conv2d) and axis == "in":
        _keep(module, "weight", keep, 1)
        module.in_channels = count
    elif isinstance(module, nn.Conv2d):
        _keep(module, "weight", keep, 0)
        _keep(module, "bias", keep, 0)
        module.out_channels = count
        if axis == "both":
            module.in_channels = module.groups = count
    elif isinstance(module, nn.Linear) and axis == "in":
        _keep(module, "weight", keep, 1)
        module.in_features = count
    elif isinstance(module, nn.Linear):
        _keep(module, "weight", keep, 0)
        _keep(module, "bias", keep, 0)
        module.out_features = count
    elif isinstance(module, nn.BatchNorm2d):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _keep(module, name, keep, 0)
        module.num_features = count
    elif isinstance(module, nn.LayerNorm):
        _keep(module, "weight", keep, 0)
        _keep(module, "bias", keep, 0)
        module.normalized_shape = (count,)
    elif isinstance(module, nn.Identity):
        pass  # a folded norm
    else:
        raise PruningError(f"cannot slice a {type(module).__name__}")


def _keep(module: nn.Module, name: str, keep: Tensor, dim: int) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    sliced = tensor.detach().index_select(dim, keep).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(sliced, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, sliced)
