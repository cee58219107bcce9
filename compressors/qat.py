"""Quantization-aware training: a network that computes on the grids of its plan and can still be trained.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv 1712.05877, section 3). Gradients pass the grids by ``straight_through``.

Training goes in two parts. While norms are in place, layers of less than 8 bits already compute with rounded weights:
a grid that is symmetric and per output channel commutes with the gain of the norm behind it, so these are the integers
of the folded layer too. Then norms are folded, activation ranges calibrated once, and the rest of the training runs on
exactly the network that is exported. We fold before the last part, where the paper corrects with running statistics
in the graph: batch statistics are what makes its training and its inference differ.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compressors.call_graph import INPUT_SITE, SiteMode, module_stack
from compressors.compressor import Compressed
from compressors.plan import ActivationScale, Plan, WeightScale
from compressors.preparation import norm_factors
from compressors.quantization import past_dropped
from compressors.straight_through import ActivationQuantizer, WeightQuantizer
from compressors.structure import Structure
from compressors.weight_grid import fake_quantize_weight, fit_weight, round_bias

# At 8 bits steps stay as calibrated: learning them gains nothing.
PLAIN_BITS = 8


def round_weights(network: nn.Module, scales: Mapping[str, WeightScale]) -> None:
    """Makes layers compute with rounded weights, in place; steps below 8 bits are learned."""
    for path, scale in scales.items():
        quantizer = WeightQuantizer(scale, learned=scale.bits < PLAIN_BITS)
        parametrize.register_parametrization(network.get_submodule(path), "weight", quantizer)


def grids_of(network: nn.Module) -> dict[str, WeightScale]:
    """The grids of rounded layers as they are by now."""
    found = {}
    for path, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            steps: Any = module.parametrizations
            for step in steps["weight"]:
                if isinstance(step, WeightQuantizer):
                    found[path] = step.scale()
    return found


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network without what rounds or fades its weights: float32, on the CPU."""
    inner = "parametrizations.weight.original"
    return {
        name.replace(inner, "weight"): value.detach().cpu().contiguous().clone()
        for name, value in network.state_dict().items()
        if "parametrizations." not in name or name.endswith(inner)
    }


def unfolded_scales(network: nn.Module, plan: Plan) -> dict[str, WeightScale]:
    """Grids of less than 8 bits for the weights of a network whose norms are in place.

    Args:
        network: from ``finetuning.trainable``.
        plan: says the bits.
    """
    found = {}
    for path, scale in plan.weights.items():
        module = network.get_submodule(path)
        if scale.bits < PLAIN_BITS and isinstance(module.weight, Tensor):
            found[path] = fit_weight(module.weight, scale.bits)
    return found


def folded_scales(
    network: nn.Module, plan: Plan, scales: Mapping[str, WeightScale]
) -> dict[str, WeightScale]:
    """The grids of weights once the norms behind their layers are folded: steps times the gain's magnitude.

    Args:
        network: norms in place, with the statistics that will be folded.
    """
    norms = dict(plan.normed)
    found = {}
    for path, scale in scales.items():
        norm = network.get_submodule(norms[path]) if path in norms else None
        gain = norm_factors(norm)[0].abs() if isinstance(norm, nn.BatchNorm2d) else None
        steps = torch.tensor(scale.scale) * (1.0 if gain is None else gain.cpu())
        found[path] = dataclasses.replace(
            scale, scale=tuple(float(s) for s in steps.clamp_min(1e-12))
        )
    return found


class QuantizationAware(nn.Module):
    """A folded network on the grids of a plan; its weights, biases and steps below 8 bits can be trained.

    In eval mode its outputs are those of ``QuantizedNetwork`` around the network of ``result``, but for the rounding
    of biases. Input and output as the inner network's.

    Args:
        network: folded, float; taken over.
        plan: with calibrated activations.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__()
        # In a tuple, so that it does not become a module of this one.
        self._plain = (copy.deepcopy(network),)
        self.inner_network = network
        self.plan = plan
        round_weights(network, plan.weights)
        # Sites that share a tensor's grid share the quantizer, so that a learned step stays common to them.
        grids = list(dict.fromkeys(plan.activations.values()))
        self.quantizers = nn.ModuleList(
            ActivationQuantizer(grid, grid.bits < PLAIN_BITS, grid.scale) for grid in grids
        )
        self._index = {site: grids.index(grid) for site, grid in plan.activations.items()}

    def forward(self, x: Tensor) -> Any:
        x = self._quantize(INPUT_SITE, x)
        with module_stack(self.inner_network) as stack, SiteMode(stack, self._quantize):
            return self.inner_network(x)

    def _quantize(self, site: str, value: Tensor) -> Tensor:
        index = self._index.get(site)
        if index is None:
            return value
        made: Tensor = self.quantizers[index](value)
        return made

    def result(self) -> tuple[nn.Module, Plan]:
        """A network with the trained float weights, and the plan with the grids they belong on; on the CPU."""
        network = copy.deepcopy(self._plain[0])
        network.load_state_dict(plain_state(self.inner_network))
        grids: list[ActivationScale] = []
        for quantizer in self.quantizers:
            assert isinstance(quantizer, ActivationQuantizer)
            grids.append(quantizer.scale())
        activations = {site: grids[index] for site, index in self._index.items()}
        weights = grids_of(self.inner_network)
        return network, dataclasses.replace(self.plan, weights=weights, activations=activations)


def on_grid(network: nn.Module, plan: Plan, structure: Structure) -> Compressed:
    """A network trained on the grids of a plan, with its weights and biases rounded onto them, in place.

    Args:
        network: folded, float, of the plan's shape.
        plan: its integer layers and their grids.
        structure: of the uncompressed, folded network.
    """
    resolve = past_dropped(structure, plan.dropped)
    for path, scale in plan.weights.items():
        layer, module = structure.layer(path), network.get_submodule(path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        module.weight.data = fake_quantize_weight(module.weight, scale)
        if module.bias is not None and (layer.kind != "linear" or len(layer.input_shape) == 2):
            reads = plan.activations[resolve(layer.input)]
            module.bias.data = round_bias(module.bias, scale, reads)
    return Compressed(network, plan)
