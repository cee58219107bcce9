"""Weights from a safetensors file into a network, all of them or none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from service.errors import WeightsError

_NAMED = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        WeightsError: the file is missing, no safetensors file, or cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"no weights file {path.name!r}")
    try:
        tensors: dict[str, Tensor] = load_file(str(path), device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path.name!r} is no readable safetensors file, or cut short: {error}"
        ) from error
    return tensors


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file into ``network`` in place; the network is unchanged when it raises.

    Every tensor of the network's state must be there under its name, with its shape, and nothing
    else. Floating-point tensors may differ in width; they are converted. Of tensors that the
    network ties together (one storage, several names) one name is enough, because safetensors
    stores them once.

    Raises:
        WeightsError: unreadable, or tensors missing, unexpected, of another shape or kind, or not
            finite. The message names the first few and says how many there are.
    """
    given = read_weights(path)
    wanted = network.state_dict()
    present = {_storage(wanted[name]) for name in given if name in wanted}
    missing = [n for n in wanted if n not in given and _storage(wanted[n]) not in present]
    unexpected = [name for name in given if name not in wanted]
    both = [name for name in wanted if name in given]
    shapes = [
        f"{name} is {_shape(given[name])}, the network has {_shape(wanted[name])}"
        for name in both
        if given[name].shape != wanted[name].shape
    ]
    kinds = [
        f"{name} is {given[name].dtype}, the network has {wanted[name].dtype}"
        for name in both
        if given[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    problems = [
        *_listed("missing from the file", missing),
        *_listed("not in the network", unexpected),
        *_listed("wrong shape", shapes),
        *_listed("wrong kind of number", kinds),
    ]
    if problems:
        raise WeightsError(f"the weights do not fit the network: {'; '.join(problems)}")
    bad = [n for n in both if given[n].is_floating_point() and not _finite(given[n])]
    if bad:
        raise WeightsError(
            f"the weights hold values that are not finite: {'; '.join(_listed('nan or inf', bad))}"
        )
    network.load_state_dict({name: given[name] for name in both}, strict=False)


def _storage(tensor: Tensor) -> tuple[int, torch.Size]:
    # Empty tensors all have address 0, which ties nothing.
    address = tensor.data_ptr() or id(tensor)
    return address, tensor.shape


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a scalar"


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())


def _listed(what: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{len(names)} {what} ({', '.join(names[:_NAMED])}{more})"]
