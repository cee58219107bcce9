"""Where a runtime puts its quantized tensors, and a network whose tensors pass quantizers there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressors.call_graph import INPUT_SITE, SiteMode, module_stack
from compressors.plan import ActivationScale
from compressors.structure import MOVERS, Structure


def quantized_sites(
    structure: Structure, layers: Iterable[str], dropped: Iterable[str] = ()
) -> dict[str, str]:
    """Tensors that are quantized when the given layers run in integers.

    The input of each layer, and the output of each convolution after its rectifier: ONNX Runtime fuses a
    convolution into integers only between a quantized input and a quantized output. Linear layers may leave
    their output float.

    Args:
        structure: of the uncompressed network.
        layers: paths of the integer layers, none inside a dropped block.
        dropped: paths of dropped blocks; what read a dropped block's output reads its input.

    Returns:
        Site to the site whose scale it shares: through calls that only move values (pooling by maximum,
        reshapes) a tensor keeps its scale, else the runtime would requantize there.
    """
    chosen = set(layers)
    resolve = past_dropped(structure, dropped)
    sites: dict[str, str] = {}
    for layer in structure.layers:
        if layer.path in chosen:
            sites[resolve(layer.input)] = ""
            if layer.kind != "linear":
                sites[resolve(layer.output)] = ""
    producer = structure.graph.by_site()
    for site in sites:
        root = site
        while root in producer and producer[root].function in MOVERS:
            before = resolve(producer[root].inputs[0])
            if before not in sites:
                break
            root = before
        sites[site] = root
    return sites


def asked_bits(
    structure: Structure,
    layers: Iterable[str],
    activation_bits: Mapping[str, int],
    dropped: Iterable[str] = (),
) -> dict[str, int]:
    """Bits of the tensors that integer layers read, by site: of several readers the one that asks most decides.

    Readers that run in float ask nothing.

    Args:
        layers: paths of the integer layers.
        activation_bits: by layer path; 8 where left out.
    """
    chosen = set(layers)
    resolve = past_dropped(structure, dropped)
    asked: dict[str, int] = {}
    for layer in structure.layers:
        if layer.path in chosen:
            site = resolve(layer.input)
            asked[site] = max(asked.get(site, 0), activation_bits.get(layer.path, 8))
    return asked


def shared_bits(sites: Mapping[str, str], asked: Mapping[str, int]) -> dict[str, int]:
    """Bits of every quantized site: sites with a common scale take the most asked of any, 8 where none is asked.

    Args:
        sites: see ``quantized_sites``.
        asked: see ``asked_bits``.
    """
    most: dict[str, int] = {}
    for site, root in sites.items():
        if site in asked:
            most[root] = max(most.get(root, 0), asked[site])
    return {site: most.get(root, 8) for site, root in sites.items()}


def past_dropped(structure: Structure, dropped: Iterable[str]) -> Callable[[str], str]:
    """Maps a site to the one that is read in its place when blocks are dropped."""
    gone = set(dropped)
    alias = {b.output: b.input for b in structure.blocks if b.path in gone}

    def resolve(site: str) -> str:
        while site in alias:
            site = alias[site]
        return site

    return resolve


class QuantizedNetwork(nn.Module):
    """A network whose tensors pass the plan's quantizers. Input and output as the inner network's.

    Weights of quantized layers are expected on their grid already (``fake_quantize_weight``).
    """

    def __init__(self, network: nn.Module, activations: Mapping[str, ActivationScale]) -> None:
        super().__init__()
        self.inner_network = network
        self.activations = dict(activations)
        self.traced: list[str] = []  # sites in the order of their quantizers in an exported graph

    def forward(self, x: Tensor) -> Any:
        if not self.activations:
            return self.inner_network(x)
        self.traced.clear()
        x = self._quantize(INPUT_SITE, x)
        with module_stack(self.inner_network) as stack, SiteMode(stack, self._quantize):
            return self.inner_network(x)

    def _quantize(self, site: str, value: Tensor) -> Tensor:
        scale = self.activations.get(site)
        if scale is None:
            return value
        top = 2**scale.bits - 1
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            # The exporter knows 8 bits alone; ``narrow_levels`` ends smaller grids in the graph.
            self.traced.append(site)
            return torch.fake_quantize_per_tensor_affine(
                value, scale.scale, scale.zero_point, 0, 255
            )
        # The same numbers as QuantizeLinear gives (division, half to even), three times as fast as the operator
        # above, which also fills a gradient mask.
        value = torch.div(value, scale.scale).round_()
        return value.clamp_(-scale.zero_point, top - scale.zero_point).mul_(scale.scale)
