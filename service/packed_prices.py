"""What a job's packed files take: the price of every policy, and the exact size of one network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from compressors import Compressed, Compressor, Plan
from compressors.packed import pack_network
from search_spaces import CostModel
from search_spaces.network_space import NetworkSpace
from search_spaces.packed_model import packed_model, packed_samples
from search_spaces.packed_rates import rates_of

# Policies that are packed to learn from, and how many of them are compressed as the search would do it; the others
# are not refitted, which takes most of the time and moves sizes little.
SAMPLES = 12
_REFITTED = 4

Stage = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class PackedPrices:
    """See the module's docstring.

    Attributes:
        model: bytes of a policy's packed file, with their error.
        uncompressed: bytes of the uncompressed network's, packed without loss.
    """

    model: CostModel
    uncompressed: float


def packed_size(compressed: Compressed) -> int:
    """Bytes of the packed file, exactly."""
    return len(pack_network(compressed.network, compressed.plan))


def baseline_size(compressor: Compressor) -> int:
    """Bytes of the uncompressed network's packed file: 32-bit weights, packed without loss."""
    whole = Plan(input_shape=tuple(compressor.images.shape[1:]), folded=compressor.folded_pairs)
    return len(pack_network(compressor.folded, whole))


def weight_bytes(compressor: Compressor) -> int:
    """Bytes of the uncompressed network's parameters as 32-bit numbers, norms folded: what "times smaller than its
    fp32 weights" is measured against."""
    return 4 * sum(parameter.numel() for parameter in compressor.folded.parameters())


def learn_packed(
    compressor: Compressor,
    network_space: NetworkSpace,
    reduce_range: bool,
    stage: Stage,
    check: Callable[[], None],
    pin: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _key, value: value,
) -> PackedPrices:
    """Packs sampled policies and learns the price of all.

    Args:
        pin: stores sizes for later attempts at the same job, which must price alike.
    """
    policies = packed_samples(network_space, SAMPLES, seed=0)
    sizes = []
    for k, policy in enumerate(policies):
        check()
        stage("packed", "packing sampled policies", k, len(policies))
        rough = k >= _REFITTED
        made = compressor.compress(network_space.choices(policy), refit=not rough, quick=rough)
        sizes.append(packed_size(made))
    pinned = pin("packed", {"sizes": sizes, "baseline": baseline_size(compressor)})
    rates = {}
    for layer in network_space.structure.layers:
        module = compressor.folded.get_submodule(layer.path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        rates[layer.path] = rates_of(module, reduce_range)
    learned = list(zip(policies, pinned["sizes"], strict=True))
    return PackedPrices(packed_model(network_space, rates, learned), float(pinned["baseline"]))
