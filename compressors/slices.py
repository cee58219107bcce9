"""Where channels lie in a network, and how one module or parameter is cut down to some of them.

A place is a pair (path, axis) as plans name it: a module path with ``out``, ``in`` or ``both`` (``pruning_group``);
the full name of a parameter with the number of its axis; or a module path with what the module holds as a plain
number: ``heads``, ``.NAME`` for an attribute, ``.NAME.K`` for an entry of an attribute that is a tuple.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as BatchNorm

from compressors.attention import head_count, set_head_count
from compressors.errors import PruningError

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
# What is left of a norm that was folded into the layer before it.
_FOLDED = nn.Identity | nn.Sequential


def place(network: nn.Module, owner: str, axis: int | str) -> tuple[str, str] | None:
    """Where a plan names an axis (``channel_classes.Axis``).

    Returns:
        None for an axis that no channel is taken from: the kernel of a convolution.
    """
    if isinstance(axis, str):
        return owner, "both" if axis == "norm" else axis
    path, _, own = owner.rpartition(".")
    module = network.get_submodule(path)
    if isinstance(module, _CONVOLUTIONS | nn.Linear) and own in ("weight", "bias"):
        grouped = getattr(module, "groups", 1) > 1
        if axis == 0:
            return path, "both" if grouped else "out"
        return (path, "in") if axis == 1 and not grouped else None
    if _is_norm(module):
        return path, "both"
    return owner, str(axis)


def width(network: nn.Module, path: str, axis: str) -> int:
    """How many positions a place has.

    Raises:
        PruningError: a module of a kind that cannot be sliced.
    """
    if axis.isdigit():
        return int(_tensor(network, path).shape[int(axis)])
    module = network.get_submodule(path)
    if axis == "heads":
        return head_count(module) or 0
    if axis.startswith("."):
        _, name, *entry = axis.split(".")
        value = getattr(module, name)
        return int(value[int(entry[0])] if entry else value)
    if isinstance(module, _CONVOLUTIONS):
        return module.in_channels if axis == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if axis == "in" else module.out_features
    if isinstance(module, BatchNorm):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list):
        return int(shape[-1])
    raise PruningError(f"{path}: cannot slice a {type(module).__name__}")


def cut(network: nn.Module, path: str, axis: str, keep: Tensor) -> None:
    """Keeps some positions of a place, in place.

    Args:
        keep: int64 [k], increasing.

    Raises:
        PruningError: a module of a kind that cannot be sliced.
        AttributeError: no such module or parameter.
        IndexError: it has fewer positions.
    """
    if axis.isdigit():
        _tensor(network, path)
        parent, _, own = path.rpartition(".")
        _keep(network.get_submodule(parent), own, keep, int(axis))
        return
    module = network.get_submodule(path)
    if axis == "heads" or axis.startswith("."):
        _resize(module, axis, len(keep))
    elif isinstance(module, _CONVOLUTIONS | nn.Linear):
        _cut_layer(module, axis, keep)
    elif _is_norm(module):
        _cut_norm(module, keep)
    elif not isinstance(module, _FOLDED):
        raise PruningError(f"{path}: cannot slice a {type(module).__name__}")


def _resize(module: nn.Module, axis: str, count: int) -> None:
    if axis == "heads":
        set_head_count(module, count)
        return
    _, name, *entry = axis.split(".")
    value = getattr(module, name)
    if entry:
        k = int(entry[0])
        setattr(module, name, (*value[:k], count, *value[k + 1 :]))
    else:
        setattr(module, name, count)


def _cut_layer(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear, axis: str, keep: Tensor
) -> None:
    count = len(keep)
    _keep(module, "weight", keep, 1 if axis == "in" else 0)
    if axis != "in":
        _keep(module, "bias", keep, 0)
    if isinstance(module, nn.Linear):
        setattr(module, "in_features" if axis == "in" else "out_features", count)
        return
    if axis == "in":
        module.in_channels = count
        return
    if axis == "both":
        inputs, outputs = module.in_channels // module.groups, module.out_channels // module.groups
        module.groups = count // outputs
        module.in_channels = module.groups * inputs
    module.out_channels = count


def _cut_norm(module: nn.Module, keep: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _keep(module, name, keep, 0)
    if isinstance(module, BatchNorm):
        module.num_features = len(keep)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(keep)
    else:
        setattr(module, "normalized_shape", (len(keep),))  # noqa: B010


def _is_norm(module: nn.Module) -> bool:
    shaped = isinstance(getattr(module, "normalized_shape", None), tuple | list)
    return shaped or isinstance(module, BatchNorm | nn.GroupNorm)


def _tensor(network: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    found = getattr(network.get_submodule(path), own)
    if not isinstance(found, Tensor):
        raise AttributeError(name)
    return found


def _keep(module: nn.Module, name: str, keep: Tensor, dim: int) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    sliced = tensor.detach().index_select(dim, keep.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(sliced, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, sliced)
