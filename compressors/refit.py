"""Least-squares refit of layers whose inputs were pruned.

After channels are removed, each layer that read them is solved anew so that its output comes as near as possible
to what the uncompressed layer gave on the same images: the reconstruction of He et al. 2017, "Channel Pruning for
Accelerating Very Deep Neural Networks" (arXiv 1707.06168, eq. 3) as AMC uses it, without its faults: k x k
convolutions and linear layers too, and inputs taken from the network as compressed so far, never stale ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors.call_graph import channels_last
from compressors.structure import Layer, Structure

# Ridge towards the present weights, relative to the mean diagonal of the Gram matrix.
RIDGE = 1e-4
# Above this many inputs a row the Gram matrix costs more than it gives; the layer keeps its weights.
MAX_FEATURES = 2400


@dataclass(frozen=True)
class Target:
    """What a layer gave in the uncompressed network at sampled places.

    Attributes:
        rows, columns: int64 [images, places]: sampled output positions (zeros for a linear layer on vectors).
        values: float32 [images * places, out_channels].
    """

    rows: Tensor
    columns: Tensor
    values: Tensor


def refittable(layer: Layer) -> bool:
    return layer.kind in ("conv", "linear")


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
        images: float [n, ...]; the same images must be used in ``Refitter``.
        paths: layers to keep.
        places: positions an image.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Target] = {}
    parts: dict[str, list[Tensor]] = {}
    where: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    start = 0
    for layer in structure.layers:
        if layer.path not in set(paths) or not refittable(layer):
            continue
        height, width = _grid(layer)
        n = min(places, height * width)
        flat = torch.stack(
            [torch.randperm(height * width, generator=generator)[:n] for _ in range(len(images))]
        )
        where[layer.path] = (flat // width, flat % width)
        parts[layer.path] = []

        def keep(
            _m: nn.Module, _i: tuple[Tensor, ...], out: Tensor, path: str = layer.path
        ) -> None:
            rows, columns = where[path]
            chosen = slice(start, start + len(out))
            parts[path].append(_at(out, rows[chosen], columns[chosen]))

        handles.append(network.get_submodule(layer.path).register_forward_hook(keep))
    try:
        with torch.no_grad():
            for start in range(0, len(images), batch):
                network(channels_last(images[start : start + batch]))
    finally:
        for handle in handles:
            handle.remove()
    for path, chunks in parts.items():
        rows, columns = where[path]
        found[path] = Target(rows, columns, torch.cat(chunks))
    return found


def _grid(layer: Layer) -> tuple[int, int]:
    """Spatial size of the layer's output; tokens of a linear layer count as rows."""
    shape = layer.output_shape
    if layer.kind != "linear":
        return shape[2], shape[3]
    height = 1
    for size in shape[1:-1]:
        height *= size
    return height, 1


def _at(out: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Outputs [n * places, channels] at the sampled positions."""
    images = torch.arange(len(out)).view(-1, 1)
    if out.dim() == 4:
        return out[images, :, rows, columns].reshape(-1, out.shape[1])
    return out.reshape(len(out), -1, out.shape[-1])[images, rows].reshape(-1, out.shape[-1])


def patches(module: nn.Conv2d | nn.Linear, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Inputs [n * places, features] that the layer reads for the sampled outputs, in the weight's order."""
    images = torch.arange(len(x)).view(-1, 1)
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[images, rows].reshape(-1, x.shape[-1])
    (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
    assert not isinstance(module.padding, str)
    ph, pw = module.padding
    if kh == kw == 1 and ph == pw == 0:
        return x[images, :, rows * sh, columns * sw].reshape(-1, x.shape[1])
    x = F.pad(x, (pw, pw, ph, ph))
    r = (rows * sh).view(*rows.shape, 1, 1) + (torch.arange(kh) * dh).view(1, 1, kh, 1)
    c = (columns * sw).view(*columns.shape, 1, 1) + (torch.arange(kw) * dw).view(1, 1, 1, kw)
    taken = x[images.view(-1, 1, 1, 1), :, r, c]  # [n, places, kh, kw, channels]
    return taken.permute(0, 1, 4, 2, 3).reshape(-1, x.shape[1] * kh * kw)


def solve(module: nn.Conv2d | nn.Linear, inputs: Tensor, targets: Tensor) -> None:
    """Sets weight and bias to the ridge solution, in place.

    ``min |X w + b - Y|^2 + ridge |w - w0|^2`` where ``w0`` is the present weight.

    Args:
        inputs: float [rows, features].
        targets: float [rows, out_channels].
    """
    weight = module.weight.detach().flatten(1)
    residual = torch.addmm(targets, inputs, weight.T, alpha=-1)
    if module.bias is not None:
        # Centred inputs decouple the bias from the weights.
        mean, bias = inputs.mean(0), residual.mean(0)
        inputs = inputs - mean
        residual -= bias
    gram = (inputs.T @ inputs).double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        return  # all-zero inputs: nothing to learn from
    delta = torch.cholesky_solve((inputs.T @ residual).double(), factor).float().T
    if not torch.isfinite(delta).all():
        return
    module.weight.data = (weight + delta).reshape(module.weight.shape).contiguous()
    if module.bias is not None:
        module.bias.data = bias - delta @ mean


class Refitter:
    """Refits layers during one forward pass: each is solved just before it runs, on what reaches it then.

    Args:
        targets: from ``collect_targets``.
        channels: kept output channels per layer path, int64, where they were pruned.
    """

    def __init__(self, targets: dict[str, Target], channels: dict[str, Tensor]) -> None:
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
                    self._refit(path, m, inputs[0])

                handles.append(module.register_forward_pre_hook(before))
        return handles

    def _refit(self, path: str, module: nn.Module, x: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        target = self._targets[path]
        if module.weight[0].numel() > MAX_FEATURES:
            return
        if isinstance(module, nn.Conv2d) and (
            type(module) is not nn.Conv2d
            or isinstance(module.padding, str)
            or module.padding_mode != "zeros"
        ):
            return  # pads in a way of its own: which inputs an output reads is not known here
        values = target.values
        if path in self._channels:
            values = values[:, self._channels[path]]
        inputs = patches(module, x.detach(), target.rows, target.columns)
        if len(inputs) <= inputs.shape[1]:
            return  # fewer equations than unknowns would fit noise
        solve(module, inputs, values)
        self.refitted.append(path)
