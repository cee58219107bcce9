"""The tensor calls of one forward pass, named so that the names survive pruning and dropped blocks.

Every call of a torch function during a forward pass gets a *site*, ``<module path>:<function>#<n>``: the module
whose ``forward`` makes the call, the function, and how many times that module called it before. The same mode
records the graph once and later puts quantizers on the sites of a plan, so recording, scoring and exporting
agree on what is quantized, whatever Python the network is written in.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressors.errors import TraceError
from compressors.product_macs import product_macs

INPUT_SITE = ":input#0"

# Attribute access and shape queries are no computation.
_IGNORED = {"get", "set", "len", "size", "dim", "numel", "stride", "is_floating_point", "detach"}


@dataclass(frozen=True, slots=True)
class Call:
    """One torch function call.

    Attributes:
        site: name of its (first) output, see the module's docstring.
        function: name of the torch function, e.g. ``conv2d``, ``relu``, ``add``.
        module: path of the module whose ``forward`` made the call.
        inputs: sites of its tensor arguments that were computed from the input, in order.
        shape: of the output.
        floating: whether the output holds real numbers.
        macs: multiply-accumulates of a matrix product that the module's own code makes, over the whole batch.
    """

    site: str
    function: str
    module: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    floating: bool
    macs: int = 0


@dataclass(frozen=True, slots=True)
class ModuleUse:
    """One call of a module: sites and shapes of its only tensor input and output, where it has just one."""

    path: str
    input: str | None
    output: str | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    arguments: int


@dataclass(frozen=True, slots=True)
class CallGraph:
    """What one forward pass computed.

    Attributes:
        calls: in execution order.
        uses: every module call, in order of finishing.
        output: site of the network's output.
        output_shape: its shape, batch first.
    """

    calls: tuple[Call, ...]
    uses: tuple[ModuleUse, ...]
    output: str
    output_shape: tuple[int, ...]

    def by_site(self) -> dict[str, Call]:
        return {call.site: call for call in self.calls}

    def consumers(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            for site in dict.fromkeys(call.inputs):
                found.setdefault(site, []).append(call)
        return found


def function_name(function: Any) -> str:
    """``add`` for ``torch.add``, ``Tensor.add``, ``+`` and ``+=`` alike."""
    name: str = getattr(function, "__name__", str(function))
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        if (
            name not in ("get", "set", "len", "getitem")
            and name[0] in "ir"
            and name[1:] in _ARITHMETIC
        ):
            name = name[1:]
    return name.rstrip("_")


_ARITHMETIC = {"add", "sub", "mul", "truediv", "matmul", "pow"}


def channels_last(images: Tensor) -> Tensor:
    """Images [n, C, H, W] laid out with channels innermost, other inputs as they are.

    The layout passes on from call to call; oneDNN runs depthwise and 1x1 convolutions up to twice as fast on it.
    """
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


@contextlib.contextmanager
def module_stack(network: nn.Module) -> Iterator[list[str]]:
    """Keeps the path of the running module on top of the yielded list (the root's path is "")."""
    stack = [""]
    handles = []
    for path, module in network.named_modules():
        if not path:
            continue

        def enter(_m: nn.Module, _i: Any, path: str = path) -> None:
            stack.append(path)

        def leave(_m: nn.Module, _i: Any, _o: Any) -> None:
            stack.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class SiteMode(TorchFunctionMode):
    """Names the calls of a forward pass and lets ``on_output`` replace what they return.

    Args:
        stack: from ``module_stack``.
        on_output: ``(site, output) -> output`` for every tensor that a call returns.
    """

    def __init__(self, stack: list[str], on_output: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self._stack = stack
        self._on_output = on_output
        self._counts: Counter[tuple[str, str]] = Counter()

    def site(self, name: str) -> str:
        site = self.next_site(name)
        self._counts[(self._stack[-1], name)] += 1
        return site

    def next_site(self, name: str) -> str:
        """What the next call of a function will be named, if it is numbered."""
        path = self._stack[-1]
        return f"{path}:{name}#{self._counts[(path, name)]}"

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = function_name(func)
        if not _counts(name, out):
            return out
        site = self.site(name)
        if isinstance(out, Tensor):
            return self._on_output(site, out)
        if type(out) not in (tuple, list):
            return out
        # Pieces of a split, named as the recorder names them.
        pieces = [self._on_output(s, piece) for s, piece in zip(_piece_sites(site), _tensors(out))]
        return type(out)(pieces) if len(pieces) == len(out) else out


class _Recorder(SiteMode):
    def __init__(self, stack: list[str]) -> None:
        super().__init__(stack, lambda _site, out: out)
        self.calls: list[Call] = []
        self.site_of: dict[int, str] = {}
        self._alive: list[Tensor] = []  # keeps ids from being reused

    def add(self, tensor: Tensor, site: str) -> None:
        self.site_of[id(tensor)] = site
        self._alive.append(tensor)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        inputs = [self.site_of[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.site_of]
        out = func(*args, **(kwargs or {}))
        name = function_name(func)
        if not _counts(name, out):
            return out
        site = self.site(name)
        if not inputs:
            return out  # computed from parameters alone
        if any(out is t for t in _tensors((args, kwargs))) and not _in_place(func, kwargs):
            return out  # dropout in eval mode and the like hand their input through
        for own, tensor in zip(_piece_sites(site), _tensors(out)):
            self.calls.append(
                Call(
                    own,
                    name,
                    self._stack[-1],
                    tuple(inputs),
                    tuple(tensor.shape),
                    tensor.is_floating_point(),
                    product_macs(name, args, kwargs or {}, tensor),
                )
            )
            self.add(tensor, own)
        return out


def _counts(name: str, out: Any) -> bool:
    """Whether a call is numbered: only those that give real numbers, because tracing turns arithmetic on
    shapes into integer tensors and must number the rest as a plain run does."""
    return name not in _IGNORED and any(t.is_floating_point() for t in _tensors(out))


def _piece_sites(site: str) -> Iterator[str]:
    """Names of the tensors that one call gives."""
    yield site
    for k in itertools.count(1):
        yield f"{site}.{k}"


def _in_place(func: Any, kwargs: dict[str, Any] | None) -> bool:
    name = getattr(func, "__name__", "")
    return (
        (name.endswith("_") and not name.endswith("__"))
        or name.startswith("__i")
        or bool((kwargs or {}).get("inplace"))
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def record(network: nn.Module, example: Tensor) -> CallGraph:
    """Runs the network once and records its calls.

    Args:
        network: in eval mode; its modules must not work in place (``prepare`` sees to that).
        example: float [batch, ...].

    Raises:
        TraceError: the forward pass fails, or its output is no single tensor.
    """
    uses: list[ModuleUse] = []
    handles = []
    with module_stack(network) as stack, torch.no_grad():
        recorder = _Recorder(stack)

        def used(args: Any, kwargs: Any, out: Any, path: str) -> None:
            tensors = list(_tensors((args, kwargs)))
            first = tensors[0] if tensors else None
            single = out if isinstance(out, Tensor) else None
            uses.append(
                ModuleUse(
                    path,
                    None if first is None else recorder.site_of.get(id(first)),
                    None if single is None else recorder.site_of.get(id(single)),
                    () if first is None else tuple(first.shape),
                    () if single is None else tuple(single.shape),
                    len(tensors),
                )
            )

        for path, module in network.named_modules():
            if path:
                handles.append(
                    module.register_forward_hook(
                        lambda _m, a, k, o, path=path: used(a, k, o, path), with_kwargs=True
                    )
                )
        try:
            # A view of its own, so that marking it does not mark the caller's tensor.
            example = example.view_as(example)
            recorder.add(example, INPUT_SITE)
            with recorder:
                out = network(example)
        except Exception as error:
            raise TraceError(
                f"the network fails on an input of shape {list(example.shape)}: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
    if not isinstance(out, Tensor):
        raise TraceError(f"the network must return one tensor, not {type(out).__name__}")
    if id(out) not in recorder.site_of:
        raise TraceError("the network's output does not depend on its input")
    return CallGraph(
        tuple(recorder.calls), tuple(uses), recorder.site_of[id(out)], tuple(out.shape)
    )
