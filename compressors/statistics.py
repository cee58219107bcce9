"""Batch-norm statistics estimated anew on a compressed network whose norms are folded into its layers.

Li et al. 2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning" (arXiv 2007.02491, section
3.3), replaces the running mean and variance of every norm by those of the pruned network before it is scored. There
are no norms left here, but what one did is known. With gain ``g = gamma / sqrt(var + eps)`` folded in, the layer
gives ``y = g u + const`` for what the norm would have read as ``u``, so ``u`` has mean and variance
``(mean(y) - const) / g`` and ``var(y) / g^2``, and a norm with these as its statistics gives

    gamma (u - mean(u)) / sqrt(var(u) + eps) + beta  =  |gamma| (y - mean(y)) / sqrt(var(y) + eps g^2) + beta

which is again a scale and a shift of the layer's weight and bias. Nothing of it depends on the layer's weight being
the original one, so it holds behind a refit too: the output's mean becomes ``beta`` and its spread ``|gamma|``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from compressors.preparation import norm_factors
from compressors.pruner import Channels
from compressors.structure import NORMS, Structure, inside


@dataclass(frozen=True)
class NormOutput:
    """What a norm makes of any input, float32 [channels] each.

    Attributes:
        mean: its shift ``beta``.
        spread: size of its gain ``|gamma|``.
        floor: ``eps g^2`` of the module's docstring.
    """

    mean: Tensor
    spread: Tensor
    floor: Tensor

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> NormOutput:
        """Of a norm with running statistics."""
        gain, _ = norm_factors(norm)
        ones = torch.ones_like(gain)
        mean = torch.zeros_like(gain) if norm.bias is None else norm.bias.detach()
        spread = ones if norm.weight is None else norm.weight.detach().abs()
        return cls(mean, spread, norm.eps * gain.square())

    def take(self, kept: Tensor) -> NormOutput:
        """Of some channels, int64 [k]."""
        return NormOutput(self.mean[kept], self.spread[kept], self.floor[kept])


def downstream(
    structure: Structure, channels: Channels, dropped: Iterable[str]
) -> tuple[list[str], list[str]]:
    """What runs after the first thing that compression changed, and so may read other values than before.

    Args:
        structure: of the uncompressed network.
        channels: kept positions per module and axis.
        dropped: blocks left out.

    Returns:
        Paths of layers and of norms that are not folded, none inside a dropped block.
    """
    gone = tuple(dropped)
    order = {call.site: k for k, call in enumerate(structure.graph.calls)}
    changed = [
        order[layer.call]
        for layer in structure.layers
        if {"in", "both"} & set(channels.get(layer.path, {})) or inside(layer.path, gone)
    ]
    if not changed:
        return [], []
    first = min(changed)
    layers = [x.path for x in structure.layers if order[x.call] >= first]
    norms = [
        call.module
        for call in structure.graph.calls
        if call.function in NORMS and order[call.site] >= first
    ]
    return [p for p in layers if not inside(p, gone)], [p for p in norms if not inside(p, gone)]


class Reestimator:
    """Estimates statistics during one forward pass over all images: each norm's on what reaches it then.

    The whole pass is one batch, so that every norm sees what a norm in training mode would.

    Args:
        network: compressed, norms folded; changed in place.
        outputs: layer path to what its folded norm makes of its output, channels as in ``network``.
        sites: layer path to the site of its own output.
        norms: paths of norms that are not folded.
    """

    def __init__(
        self,
        network: nn.Module,
        outputs: Mapping[str, NormOutput],
        sites: Mapping[str, str],
        norms: Iterable[str] = (),
    ) -> None:
        self._network = network
        self._norms = tuple(norms)
        self._of_site = {sites[path]: (path, output) for path, output in outputs.items()}

    def attach(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Watches norms that are not folded."""
        modules = [self._network.get_submodule(path) for path in self._norms]
        return [m.register_forward_pre_hook(_measure) for m in modules]

    def before(self, see: Callable[[str, Tensor], Tensor]) -> Callable[[str, Tensor], Tensor]:
        """What watches the calls of the pass (``SiteMode``), so that it sees re-estimated outputs."""
        return lambda site, value: see(site, self.see(site, value))

    def see(self, site: str, value: Tensor) -> Tensor:
        """The value as the re-estimated layer gives it, see ``SiteMode``; the layer is changed alike.

        Args:
            value: float [images, channels, height, width] that nothing else holds; overwritten.
        """
        if site not in self._of_site:
            return value
        path, wanted = self._of_site[site]
        module = self._network.get_submodule(path)
        assert isinstance(module, nn.Conv2d) and module.bias is not None
        if value.numel() < 2 * value.shape[1]:
            return value
        variance, mean = torch.var_mean(value, (0, 2, 3))
        # A norm without gain gives its shift, whatever it reads.
        smallest = torch.finfo(value.dtype).tiny
        scale = wanted.spread / (variance + wanted.floor).clamp_min(smallest).sqrt()
        shift = wanted.mean - mean * scale
        module.weight.data = module.weight.data * scale.view(-1, 1, 1, 1)
        module.bias.data = module.bias.data * scale + shift
        return value.mul_(scale.view(1, -1, 1, 1)).add_(shift.view(1, -1, 1, 1))


def _measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    x = inputs[0]
    if (
        isinstance(norm, BatchNorm)
        and norm.running_mean is not None
        and norm.running_var is not None
        and x.numel() >= 2 * x.shape[1]
    ):
        # What is computed here is no call of the network's.
        with torch._C.DisableTorchFunction():
            others = [d for d in range(x.dim()) if d != 1]
            norm.running_var, norm.running_mean = torch.var_mean(x, others)
