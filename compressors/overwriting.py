"""Rectifiers and sums that write over what they read during a calibration pass.

On 256 images at once every fresh tensor is written to memory twice: once by the operating system, which clears its
pages, and once by the call. ``preparation.prepare`` makes every call pure; a calibration pass, which has the call
graph, knows which operands nothing else reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.call_graph import SiteMode, function_name
from compressors.structure import RECTIFIERS, Structure

# Functions whose outputs are tensors of their own, and no views.
_MAKERS = ("conv2d", "batch_norm", "add")


def overwritable(structure: Structure) -> dict[str, int]:
    """Calls that may overwrite an operand, because nothing else reads it.

    Args:
        structure: of the uncompressed network; holds for every network that is made of it.

    Returns:
        Site of the call to the position of the operand among the call's tensors.
    """
    graph = structure.graph
    producer, readers = graph.by_site(), graph.consumers()
    # Where a block is dropped, its input is read in place of its output.
    kept = {site for block in structure.blocks for site in (block.input, block.output)}
    kept.add(graph.output)

    def free(site: str) -> bool:
        made = producer.get(site)
        return (
            made is not None
            and made.function in _MAKERS
            and site not in kept
            and len(readers[site]) == 1
        )

    found: dict[str, int] = {}
    for call in graph.calls:
        operands = call.inputs
        if call.function in RECTIFIERS and len(operands) == 1 and free(operands[0]):
            found[call.site] = 0
        elif call.function == "add" and len(set(operands)) == 2:
            place = next((k for k, site in enumerate(operands) if free(site)), None)
            if place is not None:
                found[call.site] = place
    return found


class OverwritingMode(SiteMode):
    """A ``SiteMode`` under which some calls overwrite an operand; every number stays the same.

    Args:
        stack, on_output: see ``SiteMode``.
        operands: from ``overwritable``.
    """

    def __init__(
        self,
        stack: list[str],
        on_output: Callable[[str, Tensor], Tensor],
        operands: Mapping[str, int],
    ) -> None:
        super().__init__(stack, on_output)
        self._operands = operands

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = function_name(func)
        place = self._operands.get(self.next_site(name))
        if place is not None:
            func, args, kwargs = _in_place(func, name, place, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


# In place, under the names that sites have and with the arguments of the functions they stand for.
def relu(x: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001
    return torch.relu_(x)


def relu6(x: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001
    return F.relu6(x, inplace=True)


def hardtanh(
    x: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,  # noqa: ARG001
) -> Tensor:
    return F.hardtanh(x, min_val, max_val, inplace=True)


_SUMS = ("add", "__add__", "__radd__")
_IN_PLACE: Mapping[str, Callable[..., Tensor]] = {f.__name__: f for f in (relu, relu6, hardtanh)}


def _in_place(
    func: Any, name: str, place: int, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> tuple[Any, tuple[Any, ...], dict[str, Any] | None]:
    """A call's equal that overwrites an operand, or the call itself where there is none."""
    if name in _IN_PLACE and args and isinstance(args[0], Tensor):
        return _IN_PLACE[name], args, kwargs
    # ``x += y`` says itself which operand it overwrites: others may hold that one.
    if name == "add" and func.__name__ in _SUMS and not kwargs and len(args) == 2:
        kept, other = args[place], args[1 - place]
        # A sum of another shape, type or layout is no tensor of the operand's form.
        if (
            isinstance(kept, Tensor)
            and isinstance(other, Tensor)
            and kept.is_floating_point()
            and (kept.shape, kept.dtype, kept.stride())
            == (other.shape, other.dtype, other.stride())
        ):
            return torch.Tensor.add_, (kept, other), None
    return func, args, kwargs
