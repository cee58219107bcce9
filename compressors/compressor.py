"""Makes compressed networks of one original: prune, drop, refit, calibrate, quantize."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from compressors.call_graph import INPUT_SITE, SiteMode, channels_last, module_stack
from compressors.errors import PruningError
from compressors.groups import PruningGroup, channels_of
from compressors.importance import ranking
from compressors.plan import Plan
from compressors.preparation import fold_norms, foldable
from compressors.pruner import Channels, drop_blocks, slice_channels
from compressors.quantization import (
    QuantizedNetwork,
    RangeObserver,
    activation_scales,
    fake_quantize_weight,
    fit_weight,
    past_dropped,
    quantized_sites,
    round_bias,
)
from compressors.recipe import CompressionRecipe
from compressors.refit import Refitter, Target, collect_targets, refittable
from compressors.structure import RECTIFIERS, Structure, analyse, inside

# Calibration images run together where nothing has to be solved: their maps are small enough to be allocated again
# and again without asking the operating system for pages.
_BATCH = 32
DEFAULT_RECIPE = CompressionRecipe()


@dataclass(frozen=True)
class Choices:
    """A policy in the network's terms.

    Attributes:
        keep: pruning group root to number of channels kept; groups left out stay whole.
        dropped: residual blocks left out.
        integer: layers run with quantized weights and activations.
        weight_bits, activation_bits: of integer layers; 8 where left out.
        rank: layer path to the rank of its factorization; layers left out are not factored.
        sparsity: layer path to its share of zero weights; layers left out stay dense.
        patterns: layer path to (N, M): N of every M weights along the input are nonzero.
        codebook: layer path to its number of shared weight values.
    """

    keep: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    integer: frozenset[str] = frozenset()
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    activation_bits: Mapping[str, int] = field(default_factory=dict)
    rank: Mapping[str, int] = field(default_factory=dict)
    sparsity: Mapping[str, float] = field(default_factory=dict)
    patterns: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    codebook: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        network: float modules; weights of integer layers lie on their grid.
        plan: what was done.
        refitted: layers whose weights were solved anew.
    """

    network: nn.Module
    plan: Plan
    refitted: tuple[str, ...] = ()

    def runnable(self) -> nn.Module:
        """The network with its activation quantizers."""
        return (
            QuantizedNetwork(self.network, self.plan.activations).eval()
            if self.plan.quantized
            else self.network
        )


class Compressor:
    """Compresses one network again and again; the original is never changed.

    Args:
        network: prepared (``preparation.prepare``).
        images: calibration images float [n, C, H, W]: for the refit and for activation ranges.
        groups: from ``groups.find_groups`` on this network.
        recipe: what is done besides the choices.
        reduce_range: keep integer weights within 63, for processors whose int8 product saturates at 16 bits.
        places: positions an image in the refit.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        groups: list[PruningGroup],
        recipe: CompressionRecipe = DEFAULT_RECIPE,
        reduce_range: bool = False,
        places: int = 24,
    ) -> None:
        self.original = network
        self.images = images
        self.groups = {group.root: group for group in groups}
        unfolded = analyse(network, images[:2])
        self.folded_pairs = tuple(foldable(network, unfolded))
        self.folded = copy.deepcopy(network)
        fold_norms(self.folded, list(self.folded_pairs))
        self.structure: Structure = analyse(self.folded, images[:2])
        self.rankings = {g.root: ranking(self.folded, g, recipe.criterion) for g in groups}
        self.recipe = recipe
        self._limit = 63 if reduce_range else 127
        self._places = places
        self._targets: dict[str, Target] | None = None
        self._overwriting = overwriting(self.structure)

    def channels(self, choices: Choices) -> Channels:
        """Kept positions per module and axis."""
        picked = []
        for root, count in choices.keep.items():
            group = self.groups.get(root)
            if group is None:
                raise PruningError(f"no pruning group {root!r} in this network")
            if count < group.channels:
                picked.append((group, np.sort(self.rankings[root][:count])))
        return channels_of(self.original, picked)

    def compress(self, choices: Choices, refit: bool = True, quick: bool = False) -> Compressed:
        """The compressed network.

        Args:
            choices: what to keep.
            refit: solve pruned layers anew (``refit``).
            quick: calibrate on two images; for graphs whose times matter and whose numbers do not.

        Raises:
            PruningError: the network fails after pruning, or its output changes shape.
        """
        channels = self.channels(choices)
        network = copy.deepcopy(self.folded)
        drop_blocks(network, choices.dropped)
        slice_channels(network, channels)
        return self._finish(network, channels, choices, refit, quick)

    def requantize(self, network: nn.Module, choices: Choices) -> Compressed:
        """Calibrates and quantizes a network that was pruned by the same choices and then trained.

        Args:
            network: float, folded, of the shape ``compress`` gives.
        """
        return self._finish(
            copy.deepcopy(network).eval(), self.channels(choices), choices, refit=False
        )

    def _finish(
        self,
        network: nn.Module,
        channels: Channels,
        choices: Choices,
        refit: bool,
        quick: bool = False,
    ) -> Compressed:
        integer = [
            layer.path
            for layer in self.structure.layers
            if layer.path in choices.integer and not inside(layer.path, choices.dropped)
        ]
        sites = quantized_sites(self.structure, integer, choices.dropped)
        refitted = self._pass(network, channels, choices, refit, sites, quick)
        observer, done = refitted
        activations = activation_scales(sites, observer.ranges)
        resolve = past_dropped(self.structure, choices.dropped)
        weights = {}
        for path in integer:
            layer, module = self.structure.layer(path), network.get_submodule(path)
            assert isinstance(module, nn.Conv2d | nn.Linear)
            weights[path] = fit_weight(module.weight, self._limit)
            module.weight.data = fake_quantize_weight(module.weight, weights[path])
            if module.bias is not None and (layer.kind != "linear" or len(layer.input_shape) == 2):
                reads = activations[resolve(layer.input)]
                module.bias.data = round_bias(module.bias, weights[path], reads)
        plan = Plan(
            folded=self.folded_pairs,
            dropped=choices.dropped,
            channels=channels,
            weights=weights,
            activations=activations,
            input_shape=tuple(self.images.shape[1:]),
        )
        return Compressed(network, plan, tuple(done))

    def _pass(
        self,
        network: nn.Module,
        channels: Channels,
        choices: Choices,
        refit: bool,
        sites: dict[str, str],
        quick: bool,
    ) -> tuple[RangeObserver, list[str]]:
        """One pass over the calibration images: refits in order, watches ranges, checks the output.

        A refit needs all images at once, since every layer is solved on what the solved ones before it give.
        """
        observer = RangeObserver(set(sites.values()))
        pruned = [
            layer.path
            for layer in self.structure.layers
            if "in" in channels.get(layer.path, {}) and not inside(layer.path, choices.dropped)
        ]
        refit = refit and bool(pruned)
        # Two images are enough for the guard alone.
        images = self.images[:2] if quick or not (refit or sites) else self.images
        outputs = {
            path: torch.tensor(axes["out"], dtype=torch.long)
            for path, axes in channels.items()
            if "out" in axes
        }
        refitter = Refitter(self.targets() if refit else {}, outputs)
        handles = refitter.attach(network, pruned) if refit else []
        observer.see(INPUT_SITE, images)
        rectifiers = self._rectifiers(network)
        for module in rectifiers:
            module.inplace = True  # type: ignore[assignment]
        try:
            for part in torch.split(images, len(images) if refit else _BATCH):
                with module_stack(network) as stack, torch.no_grad(), SiteMode(stack, observer.see):
                    out = network(channels_last(part))
        except Exception as error:
            raise PruningError(
                f"the compressed network fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
            for module in rectifiers:
                module.inplace = False  # type: ignore[assignment]
        expected = self.structure.graph.output_shape[1:]
        if tuple(out.shape[1:]) != expected:
            raise PruningError(
                f"the compressed network gives {list(out.shape[1:])} instead of {list(expected)}"
            )
        return observer, refitter.refitted

    def _rectifiers(self, network: nn.Module) -> list[nn.Module]:
        """Modules of a compressed network that may overwrite their input."""
        modules = dict(network.named_modules())
        found = [modules[path] for path in self._overwriting if path in modules]
        return [m for m in found if getattr(m, "inplace", None) is False]

    def targets(self) -> dict[str, Target]:
        """Outputs of the original at sampled places, computed at the first need."""
        if self._targets is None:
            readers = {m.path for g in self.groups.values() for m in g.members if m.axis == "in"}
            wanted = [x.path for x in self.structure.layers if x.path in readers and refittable(x)]
            self._targets = collect_targets(
                self.folded, self.structure, self.images, wanted, self._places
            )
        return self._targets


def overwriting(structure: Structure) -> tuple[str, ...]:
    """Rectifier modules that may work in place, because nothing else reads what they rectify.

    On 512 images at once a fresh output of every rectifier costs many page faults. ``prepare`` makes every module
    pure, and only a calibration pass, which has the call graph, makes some of them overwrite again.
    """
    graph = structure.graph
    producer, readers = graph.by_site(), graph.consumers()
    # Where a block is dropped, its input is read in place of its output.
    shared = {site for block in structure.blocks for site in (block.input, block.output)}
    able: dict[str, bool] = {}
    for use in graph.uses:
        made, read = producer.get(use.input or ""), readers.get(use.input or "", [])
        fine = (
            made is not None
            and made.function in ("conv2d", "batch_norm")
            and made.site not in (*shared, graph.output)
            and [(call.function in RECTIFIERS, call.module) for call in read] == [(True, use.path)]
        )
        able[use.path] = able.get(use.path, True) and fine
    return tuple(path for path, fine in able.items() if fine)
