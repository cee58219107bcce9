"""Puts the weights and biases of a compressed network on the grids of its integer layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressors.adaround import adaptive_round
from compressors.call_graph import channels_last
from compressors.patches import patches
from compressors.plan import ActivationScale, WeightScale
from compressors.quantization import QuantizedNetwork, past_dropped
from compressors.recipe import CompressionRecipe
from compressors.refit import Target, collect_targets
from compressors.structure import Structure
from compressors.weight_grid import fit_weight, quantize_weight, round_bias, steps_of

_BATCH = 32


@dataclass(frozen=True)
class LayerQuantizer:
    """See the module's docstring.

    Plain rounding needs no data. Bias correction and adaptive rounding need two passes over the calibration images:
    one of the float network, and one of the quantized network in which every layer is quantized just before it
    runs, on what the quantized layers before it give.

    Attributes:
        structure: names the layers.
        layers: paths of the integer layers, in execution order.
        dropped: paths of dropped blocks.
        activations: scales of the quantized tensors by site.
        bits: of weights by layer path; 8 where left out.
        reduce_range: see ``grid_limit``.
        recipe: says how.
    """

    structure: Structure
    layers: Sequence[str]
    dropped: Sequence[str]
    activations: Mapping[str, ActivationScale]
    bits: Mapping[str, int]
    reduce_range: bool
    recipe: CompressionRecipe

    def quantize(self, network: nn.Module, images: Tensor) -> dict[str, WeightScale]:
        """Quantizes the layers in place.

        Args:
            network: float.
            images: for calibration, float [n, C, H, W].

        Returns:
            The grid of every layer.
        """
        if self.recipe.bias_correction or self.recipe.adaround:
            return self._on_images(network, images)
        found = {}
        for path in self.layers:
            found[path] = self._round(path, _layer_module(network, path))
            self._round_bias(path, _layer_module(network, path), found[path])
        return found

    def _round(
        self, path: str, module: nn.Conv2d | nn.Linear, x: Tensor | None = None, target: Target | None = None
    ) -> WeightScale:  # fmt: skip
        scale = fit_weight(module.weight, self.bits.get(path, 8), self.reduce_range)
        if x is not None and target is not None and scale.bits > 1:
            inputs = patches(module, x, target.rows, target.columns)
            integers = adaptive_round(module, scale, inputs, target.values)
        else:
            integers = quantize_weight(module.weight, scale)
        module.weight.data = integers * steps_of(scale, module.weight)
        return scale

    def _round_bias(self, path: str, module: nn.Conv2d | nn.Linear, scale: WeightScale) -> None:
        layer = self.structure.layer(path)
        # On more than vectors the bias is a float addition of its own.
        if module.bias is not None and (layer.kind != "linear" or len(layer.input_shape) == 2):
            reads = self.activations[past_dropped(self.structure, self.dropped)(layer.input)]
            module.bias.data = round_bias(module.bias, scale, reads)

    def _on_images(self, network: nn.Module, images: Tensor) -> dict[str, WeightScale]:
        targets: dict[str, Target] = {}
        if self.recipe.adaround:
            targets = collect_targets(network, self.structure, images, self.layers)
        wanted = output_means(network, self.layers, images) if self.recipe.bias_correction else {}
        found: dict[str, WeightScale] = {}
        handles = []
        for path in self.layers:

            def before(module: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> None:
                assert isinstance(module, nn.Conv2d | nn.Linear)
                # What is computed here is no call of the network's.
                with torch._C.DisableTorchFunction():
                    found[path] = self._round(path, module, inputs[0], targets.get(path))

            def after(
                module: nn.Module, _i: tuple[Tensor, ...], out: Tensor, path: str = path
            ) -> Tensor | None:
                assert isinstance(module, nn.Conv2d | nn.Linear)
                if module.bias is None:
                    return None
                with torch._C.DisableTorchFunction():
                    given = module.bias.detach().clone()
                    if path in wanted:
                        module.bias.data = corrected_bias(module, out, wanted[path])
                    self._round_bias(path, module, found[path])
                    shape = (-1,) if isinstance(module, nn.Linear) else (1, -1, 1, 1)
                    return out + (module.bias.detach() - given).view(shape)

            module = _layer_module(network, path)
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
        try:
            with torch.no_grad():
                QuantizedNetwork(network, self.activations)(channels_last(images))
        finally:
            for handle in handles:
                handle.remove()
        return {path: found[path] for path in self.layers}


def output_means(network: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Mean output float32 [out_channels] of layers over images and positions."""
    sums: dict[str, Tensor] = {}
    handles = []
    for path in layers:

        def add(module: nn.Module, _i: tuple[Tensor, ...], out: Tensor, path: str = path) -> None:
            part = _channel_means(module, out) * (len(running) / len(images))
            sums[path] = sums[path] + part if path in sums else part

        handles.append(network.get_submodule(path).register_forward_hook(add))
    try:
        with torch.no_grad():
            for running in torch.split(images, _BATCH):
                network(channels_last(running))
    finally:
        for handle in handles:
            handle.remove()
    return sums


def corrected_bias(module: nn.Conv2d | nn.Linear, out: Tensor, wanted: Tensor) -> Tensor:
    """The bias with which the layer's mean output is the wanted one.

    ``b - (E[y~] - E[y])`` (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", arXiv 1906.04721, section 4.2 and eq. 17), with both means taken on calibration images as in its
    appendix D.

    Args:
        out: what the quantized layer gives, float [n, out_channels, H, W] or [n, ..., out_channels].
        wanted: mean output of the float layer, float [out_channels].
    """
    assert module.bias is not None
    return module.bias.detach() + wanted - _channel_means(module, out)


def _channel_means(module: nn.Module, out: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return out.flatten(0, -2).mean(0)
    return out.mean((0, 2, 3))


def _layer_module(network: nn.Module, path: str) -> nn.Conv2d | nn.Linear:
    module = network.get_submodule(path)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    return module
