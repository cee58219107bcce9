"""Puts what a peer decided into our plans.

Channels: a pruned network keeps the affine parameters of its norms, so that each of its channels can be found again
among the original's by them alone, in whatever order the peer left them. The network is then rebuilt from the original
by our own slices and given the peer's weights (or, where our refit is wanted, ours), and must give what the peer's
own gave. Bits: every layer runs in integers, its weights on a grid of so many bits. Files: the layers that read
dequantized tensors run in integers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors import Choices, Compressed, Compressor, PruningGroup, find_groups, fold_norms
from compressors.errors import PruningError
from compressors.exporter import scope_path
from compressors.groups import channels_of
from compressors.pruner import slice_channels
from compressors.recipe import CompressionRecipe

# Outputs of the rebuilt network and the peer's own may differ by so much of the largest.
TOLERANCE = 1e-3
# Bits that mean a layer was left in floating point.
_FLOAT = 16


class PrunedNetwork:
    """A pruned network of a peer among the groups of the original.

    Args:
        original: prepared, norms in place.
        images: float [n, C, H, W], to trace and to calibrate with.
        state: the pruned network's tensors, by the original's names.
        recipe, reduce_range: see ``Compressor``.

    Raises:
        PruningError: a channel cannot be found again, or channels were taken that we cannot take alone.
    """

    def __init__(
        self,
        original: nn.Module,
        images: Tensor,
        state: Mapping[str, Tensor],
        recipe: CompressionRecipe,
        reduce_range: bool = False,
    ) -> None:
        self._original, self._state = original, state
        groups, _ = find_groups(original, images[:2])
        kept = kept_channels(original, state)
        picked = [(group, kept_of(group, kept)) for group in groups]
        self.keep = {group.root: len(found) for group, found in picked}
        # Ours are increasing; the peer's order matters to its own weights alone.
        self._channels = channels_of(original, [(g, np.sort(found)) for g, found in picked])
        rankings = {g.root: _first(found, g.channels) for g, found in picked}
        self.compressor = Compressor(
            original, images, groups, recipe, reduce_range, rankings=rankings
        )

    @property
    def choices(self) -> Choices:
        """The peer's channels, every layer in integers."""
        layers = frozenset(layer.path for layer in self.compressor.structure.layers)
        return Choices(keep=self.keep, integer=layers)

    def network(self) -> nn.Module:
        """Our slices of the original with the peer's weights, norms in place.

        Raises:
            PruningError: they do not fit: the peer changed more than channels.
        """
        network = copy.deepcopy(self._original)
        slice_channels(network, self._channels)
        try:
            network.load_state_dict(dict(self._state))
        except RuntimeError as error:
            raise PruningError(
                f"the peer's weights do not fit the channels it kept: {error}"
            ) from error
        return network.eval()

    def own(self) -> Compressed:
        """The peer's network as it is, in int8."""
        network = self.network()
        fold_norms(network, list(self.compressor.folded_pairs))
        return self.compressor.requantize(
            network, self.choices, self.compressor.channels(self.choices)
        )

    def refitted(self) -> Compressed:
        """The original's weights in the peer's channels, solved anew by our recipe, in int8."""
        return self.compressor.compress(self.choices)


def check_same(network: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Raises PruningError unless a rebuilt network gives on inputs what the peer's own gave."""
    with torch.no_grad():
        ours = network(inputs)
    difference = float((ours - outputs).abs().max() / outputs.abs().max().clamp_min(1e-9))
    if not difference <= TOLERANCE:
        raise PruningError(
            f"the rebuilt network is another one than the peer's: outputs differ by {difference:.3g} of the largest"
        )


def kept_channels(original: nn.Module, state: Mapping[str, Tensor]) -> dict[str, NDArray[np.int64]]:
    """Path of every batch norm to the original's channels that it still has, in the peer's order.

    Raises:
        PruningError: a channel has no counterpart, or more than one.
    """
    found = {}
    for path, module in original.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            names = (f"{path}.weight", f"{path}.bias")
            if any(name not in state for name in names):
                raise PruningError(
                    f"{path}: the peer's network has no such norm any more; it must keep the original's names"
                )
            before = torch.stack([module.weight, module.bias], 1).detach()
            after = torch.stack([state[name] for name in names], 1)
            same = (before[None] == after[:, None]).all(2)
            if not (same.sum(1) == 1).all():
                raise PruningError(
                    f"{path}: a channel of the peer's network is not one of the original's alone"
                )
            found[path] = same.int().argmax(1).numpy().astype(np.int64)
    return found


def kept_of(group: PruningGroup, kept: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """The channels of a group that stay, int64 [k], in the peer's order.

    Raises:
        PruningError: its norms disagree, or none says what stays.
    """
    answers: list[NDArray[np.int64]] = []
    for member in group.members:
        if member.path in kept and member.axis == "both":
            position = {int(p): k for k, row in enumerate(member.positions) for p in row}
            own = [position[int(p)] for p in kept[member.path] if int(p) in position]
            answers.append(np.array(list(dict.fromkeys(own)), dtype=np.int64))
    if not answers:
        return np.arange(group.channels, dtype=np.int64)
    if any(set(a.tolist()) != set(answers[0].tolist()) for a in answers):
        raise PruningError(
            f"{group.root}: the peer took channels from some of the layers that must stay alike"
        )
    if not len(answers[0]):
        raise PruningError(f"{group.root}: the peer left no channel")
    return answers[0]


def _first(kept: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """All channels, those that are kept first."""
    return np.concatenate([kept, np.setdiff1d(np.arange(channels), kept)])


def choices_of_bits(layers: Sequence[str], bits: Mapping[str, int]) -> Choices:
    """Weights of every layer on a grid of the peer's bits, activations in 8; float where it chose none below 16.

    Raises:
        ValueError: it named a layer that the network does not have, or left one out.
    """
    if set(bits) != set(layers):
        odd = sorted(set(bits) ^ set(layers))
        raise ValueError(f"the peer's layers are not the network's: {', '.join(odd)}")
    integer = frozenset(path for path in layers if bits[path] < _FLOAT)
    narrow = {path: bits[path] for path in sorted(integer) if bits[path] < 8}
    return Choices(integer=integer, weight_bits=narrow)


def integer_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Layers of a quantized file of ours that read a dequantized tensor and a dequantized weight, by module path."""
    dequantized = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }  # fmt: skip
    movers = {"Reshape", "Transpose", "Flatten"}
    made = {name: node for node in model.graph.node for name in node.output}

    def integer(name: str) -> bool:
        while name not in dequantized and name in made and made[name].op_type in movers:
            name = made[name].input[0]
        return name in dequantized

    return tuple(
        scope_path(node.name)
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and all(integer(n) for n in node.input[:2])
    )
