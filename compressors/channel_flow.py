"""The channels that every tensor of a forward pass carries.

Each tensor has, for the axes along which something may be taken away, the numbers (``channel_classes``) of the
positions there; an axis without numbers keeps its size. ``channel_trace`` runs the network, and the rules in
``flow_layers`` and ``flow_moves`` say what a call makes of its operands' channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compressors.channel_classes import ChannelClasses

# Axis to the numbers of its positions, int64 [size].
Flow = dict[int, Tensor]

MEETS_FIXED = "its channels meet a tensor of fixed size"


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a torch function: what it was given and what it gave."""

    function: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def operands(self) -> list[Tensor]:
        """Tensors of real numbers among the arguments."""
        return [t for t in tensors((self.args, self.kwargs)) if t.is_floating_point()]

    def arguments(self, *names: str) -> list[Any]:
        """The first arguments by position or name; None for those not given."""
        return [
            self.args[k] if k < len(self.args) else self.kwargs.get(name)
            for k, name in enumerate(names)
        ]


class ChannelFlow:
    """See the module's docstring.

    Args:
        network: in eval mode, without in-place modules.
        stack: of running modules' paths, from ``call_graph.module_stack``.

    Attributes:
        classes: what was found.
    """

    def __init__(self, network: nn.Module, stack: list[str]) -> None:
        self.classes = ChannelClasses()
        self._modules = dict(network.named_modules())
        self._stack = stack
        self._of: dict[int, Flow] = {}
        self._alive: list[Tensor] = []  # keeps ids from being reused
        self._held: dict[tuple[str, str], Tensor] = {}
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point():
                sizes = {axis: size for axis, size in enumerate(tensor.shape) if size > 1}
                self.put(tensor, {a: self.classes.add(name, a, n) for a, n in sizes.items()})

    @property
    def running(self) -> nn.Module:
        """The module whose code makes the call."""
        module: nn.Module = self._modules[self._stack[-1]]
        return module

    def of(self, tensor: Tensor) -> Flow:
        return self._of.get(id(tensor), {})

    def put(self, tensor: Tensor, flow: Flow) -> None:
        self._of[id(tensor)] = flow
        self._alive.append(tensor)

    def pin(self, tensor: Tensor, reason: str) -> None:
        """Keeps everything a tensor carries."""
        for numbers in self.of(tensor).values():
            self.classes.pin(numbers, reason)

    def tie(self, first: Tensor | None, second: Tensor | None) -> None:
        """Two axes that meet position by position; None has a fixed size."""
        if first is not None and second is not None and len(first) == len(second):
            self.classes.unite(first, second, MEETS_FIXED)
            return
        for numbers in (first, second):
            if numbers is not None:
                self.classes.pin(numbers, MEETS_FIXED)

    def tie_all(self, axes: Sequence[Tensor | None]) -> Tensor | None:
        """Ties axes that all meet; returns the numbers of the first that has some."""
        known = next((numbers for numbers in axes if numbers is not None), None)
        if known is not None:
            for numbers in axes:
                if numbers is not known:
                    self.tie(known, numbers)
        return known

    def broadcast(self, operands: Sequence[Tensor], dims: int, leave: int = 0) -> Flow:
        """Flow of operands that are broadcast against each other.

        Args:
            dims: of the result.
            leave: trailing axes that are not.
        """
        flow: Flow = {}
        for axis in range(dims - leave):
            full = [t for t in operands if t.dim() >= dims - axis and t.shape[axis - dims] > 1]
            known = self.tie_all([self.of(t).get(axis - dims + t.dim()) for t in full])
            if known is not None:
                flow[axis] = known
        return flow

    def held(self, name: str, size: int) -> Tensor:
        """Numbers of a size that the running module holds (``channel_classes.Axis``)."""
        key = (self._stack[-1], name)
        if key not in self._held:
            self._held[key] = self.classes.add(*key, size)
        return self._held[key]


def follow_by_element(flow: ChannelFlow, call: Invocation) -> None:
    """A call without a rule of its own: element by element, where the shapes allow that reading. A lone operand may
    shrink along other axes (pooling). Anything else keeps its channels."""
    results, operands = tensors(call.out), call.operands
    if len(results) == 1:
        shape = results[0].shape
        if all(_broadcasts(t.shape, shape) for t in operands):
            found = flow.broadcast(operands, len(shape))
            flow.put(results[0], {a: n for a, n in found.items() if len(n) == shape[a]})
            return
        if len(operands) == 1 and len(shape) == operands[0].dim():
            found = flow.of(operands[0])
            if all(shape[axis] == len(numbers) for axis, numbers in found.items()):
                flow.put(results[0], dict(found))
                return
    for operand in operands:
        flow.pin(operand, f"{call.name} is not followed")


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to)))


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a nest of lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for item in value for t in tensors(item)]
    return []


def spread(numbers: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """A tensor of the shape that holds the numbers along an axis."""
    return numbers.view([-1 if a == axis else 1 for a in range(len(shape))]).expand(*shape)
