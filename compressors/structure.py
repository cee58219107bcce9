"""Layers, their activations and droppable blocks of a network, read off its call graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from compressors.call_graph import Call, CallGraph, ModuleUse, record

# Functions that zero (or cap) from below at 0 and so merge with an unsigned quantizer of their output.
RECTIFIERS = frozenset({"relu", "relu6", "hardtanh"})
# Functions that only move values, so that one quantizer serves input and output.
MOVERS = frozenset(
    {
        "max_pool2d",
        "flatten",
        "reshape",
        "view",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "dropout",
    }
)
NORMS = frozenset({"batch_norm"})
# What may lie between a residual sum and the end of its block; transformer layers may end in their norm (post-norm).
_HANDING_ON = RECTIFIERS | {
    "contiguous",
    "dropout",
    "flatten",
    "layer_norm",
    "reshape",
    "unflatten",
    "view",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer that runs exactly once.

    Attributes:
        path: module path.
        index: position in execution order.
        kind: ``conv``, ``depthwise``, ``grouped`` or ``linear``.
        input: site of its input.
        call: site of its own output.
        norm: path of the batch norm that alone follows it, or None.
        output: site after the norm and a following rectifier: the tensor a runtime quantizes.
        rectified: whether that output passed a rectifier.
        input_shape, output_shape: of the layer's tensors, batch first.
        in_channels, out_channels, kernel, stride: as in the module.
        macs: multiply-accumulates for one example.
        weights: number of weights (bias left out).
    """

    path: str
    index: int
    kind: str
    input: str
    call: str
    norm: str | None
    output: str
    rectified: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    macs: int
    weights: int


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block that can be left out: its input has the shape of its output and is added to it."""

    path: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product that no layer makes, such as the two of attention.

    Attributes:
        module: path of the module whose code makes it.
        macs: multiply-accumulates for one example.
    """

    module: str
    macs: int


@dataclass(frozen=True, slots=True)
class Structure:
    """See the module's docstring.

    Attributes:
        graph: the call graph of one forward pass.
        layers: in execution order.
        blocks: droppable blocks in execution order.
        skipped: layer path to the reason it is no layer of ours (called twice, no single input).
        products: in execution order.
    """

    graph: CallGraph
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    skipped: dict[str, str]
    products: tuple[Product, ...] = ()

    def layer(self, path: str) -> Layer:
        return next(layer for layer in self.layers if layer.path == path)


def inside(path: str, modules: Iterable[str]) -> bool:
    """Whether a module is one of the others or lies within one."""
    return any(path == m or path.startswith(m + ".") for m in modules)


def analyse(network: nn.Module, example: Tensor) -> Structure:
    """Records one forward pass and reads the structure off it.

    Args:
        network: prepared (``compressors.preparation.prepare``), in eval mode.
        example: float [batch, ...].

    Raises:
        TraceError: see ``call_graph.record``.
    """
    graph = record(network, example)
    consumers = graph.consumers()
    modules = dict(network.named_modules())
    counts: dict[str, int] = {}
    for use in graph.uses:
        counts[use.path] = counts.get(use.path, 0) + 1
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    order = {call.site: k for k, call in enumerate(graph.calls)}
    for use in sorted(graph.uses, key=lambda u: order.get(u.output or "", -1)):
        module = modules[use.path]
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if counts[use.path] > 1:
            skipped[use.path] = "the module runs more than once"
        elif use.input is None or use.output is None or use.arguments != 1:
            skipped[use.path] = "the module has no single tensor input and output"
        else:
            layers.append(
                _layer(use, module, len(layers), len(example), graph, consumers, modules, counts)
            )
    blocks = _blocks(network, graph, counts)
    products = tuple(Product(c.module, c.macs // len(example)) for c in graph.calls if c.macs)
    return Structure(graph, tuple(layers), blocks, skipped, products)


def _sole(consumers: dict[str, list[Call]], site: str, graph: CallGraph) -> Call | None:
    found = consumers.get(site, [])
    return found[0] if len(found) == 1 and site != graph.output else None


def _layer(
    use: ModuleUse,
    module: nn.Conv2d | nn.Linear,
    index: int,
    batch: int,
    graph: CallGraph,
    consumers: dict[str, list[Call]],
    modules: dict[str, nn.Module],
    counts: dict[str, int],
) -> Layer:
    assert use.input is not None and use.output is not None
    site, norm = use.output, None
    after = _sole(consumers, site, graph)
    if (
        after is not None
        and after.function in NORMS
        and counts.get(after.module) == 1
        and isinstance(modules[after.module], nn.BatchNorm2d)
    ):
        norm, site = after.module, after.site
        after = _sole(consumers, site, graph)
    rectified = after is not None and after.function in RECTIFIERS
    if rectified:
        assert after is not None
        site = after.site
    if isinstance(module, nn.Conv2d):
        groups = module.groups
        kind = "conv" if groups == 1 else "depthwise" if groups == module.in_channels else "grouped"
        channels = (module.in_channels, module.out_channels)
        kernel, stride = module.kernel_size[0], module.stride[0]
        macs = module.weight[0].numel() * prod(use.output_shape) // batch
    else:
        kind, kernel, stride = "linear", 1, 1
        channels = (module.in_features, module.out_features)
        # Windows of an image may lie side by side along the first axis.
        macs = module.weight.numel() * prod(use.output_shape[:-1]) // batch
    return Layer(
        use.path, index, kind, use.input, use.output, norm, site, rectified, use.input_shape, use.output_shape,
        channels[0], channels[1], kernel, stride, macs, module.weight.numel(),
    )  # fmt: skip


def _blocks(network: nn.Module, graph: CallGraph, counts: dict[str, int]) -> tuple[Block, ...]:
    by_site = graph.by_site()
    found = []
    for use in graph.uses:
        if (
            counts[use.path] == 1
            and use.arguments == 1
            and use.input is not None
            and use.output is not None
            and use.input != use.output
            and use.input_shape == use.output_shape
            and any(True for _ in network.get_submodule(use.path).children())
            and _adds_input(use, by_site)
        ):
            found.append(Block(use.path, use.input, use.output))
    # Of nested candidates only the innermost is a decision: dropping it is the finer choice.
    paths = {b.path for b in found}
    inner = [b for b in found if not any(p != b.path and p.startswith(b.path + ".") for p in paths)]
    order = {call.site: k for k, call in enumerate(graph.calls)}
    return tuple(sorted(inner, key=lambda b: order.get(b.output, -1)))


def _adds_input(use: ModuleUse, by_site: dict[str, Call]) -> bool:
    """Whether the block's output is its input plus something, up to rectifiers, layer norms and reshapes.

    A transformer block adds twice (x + attention, then that + mlp), perhaps on windows or flattened maps between, and
    may normalise each sum (Vaswani et al. 2017, arXiv 1706.03762, section 3.1).
    """
    seen: set[tuple[str, bool]] = set()
    waiting = [
        (use.output or "", False)
    ]  # a tensor, and whether an addition lies between it and the output
    while waiting:
        site, added = waiting.pop()
        if site == use.input and added:
            return True
        call = by_site.get(site)
        if call is None or (site, added) in seen:
            continue
        seen.add((site, added))
        if call.function == "add" and call.module == use.path and len(call.inputs) == 2:
            waiting += [(before, True) for before in call.inputs]
        elif call.function in _HANDING_ON and inside(call.module, (use.path,)):
            waiting.append((call.inputs[0], added))
    return False


def example_input(shape: tuple[int, int, int], batch: int = 2) -> Tensor:
    """A fixed pseudo-random batch to trace with, float32 [batch, C, H, W]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((batch, *shape), generator=generator)
