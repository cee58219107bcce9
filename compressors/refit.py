"""Least-squares refit of layers whose inputs were pruned.

After channels are removed, each layer that read them is solved anew so that its output comes as near as possible
to what the uncompressed layer gave on the same images: the reconstruction of He et al. 2017, "Channel Pruning for
Accelerating Very Deep Neural Networks" (arXiv 1707.06168, eq. 3) as AMC uses it, without its faults: k x k,
grouped and depthwise convolutions and linear layers too, and inputs taken from the network as compressed so far,
never stale ones. Of a grouped convolution every group is a problem of its own, of a depthwise one every channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressors.call_graph import channels_last
from compressors.least_squares import least_change
from compressors.patches import grid, outputs_at, patches_of_groups, readable
from compressors.refit_inputs import innermost, read_innermost, weight_innermost, weight_of
from compressors.structure import Layer, Structure

# Above this many inputs an output the normal equations cost more than they give: fewer rows, solved in dual form.
MOST_FEATURES = 2400
FEW_ROWS = 2048
# Rows a feature of a grouped convolution, whose problems are many and small.
GROUPED_ROWS = 64


@dataclass(frozen=True)
class Target:
    """What a layer gave in the uncompressed network at sampled places.

    Attributes:
        rows, columns: int64 [images, places]: sampled output positions (see ``patches.grid``).
        values: float32 [images * places, out_channels].
        height: of the grid that rows are counted in.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    height: int

    def to(self, device: str) -> Target:
        """The same on a device."""
        rows, columns, values = (t.to(device) for t in (self.rows, self.columns, self.values))
        return Target(rows, columns, values, self.height)

    def few(self, rows: int) -> Target:
        """At most so many rows, or one an image: the first places of every image."""
        images, places = self.rows.shape
        kept = min(places, max(1, rows // images))
        values = self.values.reshape(images, places, -1)[:, :kept]
        return Target(
            self.rows[:, :kept], self.columns[:, :kept], values.flatten(0, 1), self.height
        )


def refittable(layer: Layer, structure: Structure) -> bool:
    """Whether the layer's outputs belong to one image each, in the order of the images."""
    batch = structure.graph.output_shape[0]
    if layer.kind == "linear":
        return layer.output_shape[0] % batch == 0
    return layer.output_shape[0] == batch


def collect_targets(
    network: nn.Module,
    structure: Structure,
    images: Tensor,
    paths: Iterable[str],
    places: int = 24,
    batch: int = 32,
) -> dict[str, Target]:
    """Runs the uncompressed network and keeps the outputs of the named layers at random places.

    Args:
        network: uncompressed, norms folded.
        structure: of the network.
        images: float [n, ...]; the same images must be used in ``Refitter``.
        paths: layers to keep.
        places: positions an image.
        batch: images at a time.
    """
    generator = torch.Generator().manual_seed(0)
    wanted = set(paths)
    parts: dict[str, list[Tensor]] = {}
    where: dict[str, tuple[Tensor, Tensor]] = {}
    heights: dict[str, int] = {}
    handles = []
    start = 0
    for layer in structure.layers:
        if layer.path not in wanted or not refittable(layer, structure):
            continue
        module = network.get_submodule(layer.path)
        if not readable(module):
            continue
        assert isinstance(module, nn.Conv2d | nn.Linear)
        height, width = grid(layer, structure.graph.output_shape[0])
        n = min(places, height * width)
        if layer.kind in ("depthwise", "grouped"):
            n = min(n, math.ceil(GROUPED_ROWS * module.weight[0].numel() / len(images)))
        flat = torch.stack(
            [torch.randperm(height * width, generator=generator)[:n] for _ in range(len(images))]
        )
        where[layer.path] = (flat // width, flat % width)
        heights[layer.path] = height
        parts[layer.path] = []

        def keep(
            module: nn.Module, _i: tuple[Tensor, ...], out: Tensor, path: str = layer.path
        ) -> None:
            rows, columns = (t[start : start + batch] for t in where[path])
            parts[path].append(outputs_at(module, out, rows, columns))

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            for start in range(0, len(images), batch):
                network(channels_last(images[start : start + batch]))
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: Target(*where[path], torch.cat(chunks), heights[path])
        for path, chunks in parts.items()
    }


def solve(
    module: nn.Conv2d | nn.Linear, inputs: Tensor, targets: Tensor, channels_innermost: bool = False
) -> bool:
    """Sets weight and bias to the ridge solution, in place.

    ``min |X w + b - Y|^2 + ridge |w - w0|^2`` where ``w0`` is the present weight (``least_squares``).

    Args:
        inputs: float [groups, rows, features]; overwritten.
        targets: float [rows, out_channels].
        channels_innermost: features are in the order of ``read_innermost``, not in that of the weight.

    Returns:
        Whether the layer changed.
    """
    groups = len(inputs)
    if channels_innermost:
        assert isinstance(module, nn.Conv2d)
        weight = weight_innermost(module)[None]
    else:
        weight = module.weight.detach().reshape(groups, -1, inputs.shape[2])
    residual = torch.baddbmm(
        targets.reshape(len(targets), groups, -1).transpose(0, 1), inputs, weight.mT, alpha=-1
    )
    if module.bias is not None:
        # Centred inputs decouple the bias from the weights.
        mean, shift = inputs.mean(1, keepdim=True), residual.mean(1, keepdim=True)
        inputs -= mean
        residual -= shift
    change = least_change(inputs, residual)
    if change is not None:
        solved = weight + change.mT
        if channels_innermost:
            assert isinstance(module, nn.Conv2d)
            module.weight.data = weight_of(solved[0], module)
        else:
            module.weight.data = solved.reshape(module.weight.shape).contiguous()
    if module.bias is not None:
        # A mean is known from few rows, too.
        module.bias.data = (shift if change is None else shift - mean @ change).flatten()
    return change is not None or module.bias is not None


class Refitter:
    """Refits layers during one forward pass: each is solved just before it runs, on what reaches it then.

    Args:
        targets: from ``collect_targets``.
        channels: kept output channels per layer path, int64, where they were pruned.
    """

    def __init__(self, targets: Mapping[str, Target], channels: Mapping[str, Tensor]) -> None:
        self._targets = targets
        self._channels = channels
        self.refitted: list[str] = []

    def attach(
        self, network: nn.Module, paths: Iterable[str]
    ) -> list[torch.utils.hooks.RemovableHandle]:
        handles = []
        for path in paths:
            module = network.get_submodule(path)
            if path in self._targets and isinstance(module, nn.Conv2d | nn.Linear):

                def before(m: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> None:
                    # What is computed here is no call of the network's.
                    with torch._C.DisableTorchFunction():
                        self.refit(path, m, inputs[0])

                handles.append(module.register_forward_pre_hook(before))
        return handles

    def refit(self, path: str, module: nn.Module, x: Tensor) -> None:
        """Solves one layer on its inputs; one without a target keeps its weights."""
        if path not in self._targets:
            return
        assert isinstance(module, nn.Conv2d | nn.Linear)
        target = self._targets[path]
        if isinstance(module, nn.Linear) and x[..., 0].numel() != len(target.rows) * target.height:
            return  # it runs over channels (token mixing), and some of those are gone
        if module.weight[0].numel() > MOST_FEATURES:
            target = target.few(FEW_ROWS)
        values = target.values
        if path in self._channels:
            values = values[:, self._channels[path]]
        x, at = x.detach(), (target.rows, target.columns)
        if isinstance(module, nn.Conv2d) and innermost(module, x):
            solved = solve(module, read_innermost(module, x, *at)[None], values, True)
        else:
            solved = solve(module, patches_of_groups(module, x, *at), values)
        if solved:
            self.refitted.append(path)
