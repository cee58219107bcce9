"""Makes compressed networks of one original: prune, drop, refit, calibrate, quantize."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.calibration import RangeObserver, activation_scales, observe, observer_of
from compressors.call_graph import INPUT_SITE, channels_last, module_stack
from compressors.custom_criterion import CustomCriterion
from compressors.equalization import equalizable, equalize
from compressors.errors import PruningError
from compressors.factored_structure import factored_structure
from compressors.factorizer import Factorizer
from compressors.groups import PruningGroup, channels_of
from compressors.importance import importances, ranking
from compressors.integer_network import IntegerNetwork
from compressors.layer_quantizer import LayerQuantizer
from compressors.low_rank import Ranks, factors, install, installed_ranks, last_factor, ranks_of
from compressors.overwriting import OverwritingMode, overwritable
from compressors.plan import Plan
from compressors.preparation import fold_norms, foldable
from compressors.pruner import Channels, drop_blocks, slice_channels
from compressors.quantization import asked_bits, quantized_sites
from compressors.recipe import CompressionRecipe
from compressors.refit import Refitter, Target, collect_targets
from compressors.sparsity import settle_zeros, thin, thins, zero_grids
from compressors.statistics import NormOutput, Reestimator, downstream
from compressors.structure import Structure, analyse, inside

# Calibration images run together where nothing has to be solved: their maps are small enough to be allocated again
# and again without asking the operating system for pages.
_BATCH = 32
# Positions an image that the refit looks at.
PLACES = 24
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
        narrow: the target multiplies weights of fewer than 8 bits as such; elsewhere they are 8-bit integers of fewer
            values.
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
    narrow: bool = False

    def factored(self, ranks: Mapping[str, Ranks]) -> Choices:
        """The same with what is chosen for a factored layer chosen for each of its factors."""
        if not ranks:
            return self

        def spread(of: Mapping[str, Any]) -> dict[str, Any]:
            return {
                factor: value
                for path, value in of.items()
                for factor in (factors(path, ranks[path]) if path in ranks else (path,))
            }

        return replace(
            self,
            integer=frozenset(spread(dict.fromkeys(self.integer))),
            weight_bits=spread(self.weight_bits),
            activation_bits=spread(self.activation_bits),
            sparsity=spread(self.sparsity),
            patterns=spread(self.patterns),
            codebook=spread(self.codebook),
        )


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        network: float modules; weights of integer layers lie on their grid.
        plan: what was done.
        refitted: layers whose weights were solved anew.
        zeros: which weights stayed, bool, of each layer that was given zeros; training must keep them.
        codebook: layer path to its number of shared weight values.
    """

    network: nn.Module
    plan: Plan
    refitted: tuple[str, ...] = ()
    zeros: Mapping[str, Tensor] = field(default_factory=dict)
    codebook: Mapping[str, int] = field(default_factory=dict)

    def runnable(self) -> nn.Module:
        """The network with its integer layers computed as the exported file computes them."""
        return (
            IntegerNetwork(self.network, self.plan).eval() if self.plan.quantized else self.network
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
        labels: classes int64 [n] of the images, where there are any: for the criterion ``taylor``.
        rankings: channels of each group from most to least important, as another compressor of the same network
            found them; found by the recipe's criterion when left out.
        criterion: what ranks channels where the recipe names a criterion that is not ours.

    Raises:
        PruningError: the recipe's criterion cannot rank the channels of this network.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        groups: list[PruningGroup],
        recipe: CompressionRecipe = DEFAULT_RECIPE,
        reduce_range: bool = False,
        places: int = PLACES,
        labels: Tensor | None = None,
        rankings: Mapping[str, NDArray[np.int64]] | None = None,
        criterion: CustomCriterion | None = None,
    ) -> None:
        self.original = network
        self.images = images
        self.groups = {group.root: group for group in groups}
        unfolded = analyse(network, images[:2])
        self.folded_pairs = tuple(foldable(network, unfolded))
        self.folded = copy.deepcopy(network)
        fold_norms(self.folded, list(self.folded_pairs))
        self.structure: Structure = analyse(self.folded, images[:2])
        if rankings is None:
            if criterion is not None:
                found = criterion.importances(self.folded, groups, images)
            else:
                found = importances(
                    self.folded,
                    groups,
                    recipe.criterion,
                    images=images,
                    labels=labels,
                    original=network,
                    norms=self.folded_pairs,
                )
            rankings = {root: ranking(importance) for root, importance in found.items()}
        self.rankings = dict(rankings)
        self.recipe = recipe
        observer_of(
            recipe.calibration, ()
        )  # a method that does not exist is refused here, not at the first score
        self._reduce_range = reduce_range
        self._places = places
        self._targets: dict[str, Target] | None = None
        self._overwritable = overwritable(self.structure)

    def to(self, device: str) -> Compressor:
        """The same, with its network, images and targets of the refit on a device, where it compresses.

        Rankings stay as they are. Bias correction, equalization, adaptive rounding and codebooks need the CPU.
        """
        moved = copy.copy(self)
        moved._targets = {path: target.to(device) for path, target in self.targets().items()}
        moved.original = copy.deepcopy(self.original).to(device)
        moved.folded = copy.deepcopy(self.folded).to(device)
        moved.images = self.images.to(device)
        return moved

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
            refit: reconstruct without training as the recipe says: pruned layers solved anew (``refit``), norms'
                statistics estimated anew (``statistics``).
            quick: calibrate on two images; for graphs whose times matter and whose numbers do not.

        Raises:
            PruningError: the network fails after pruning, or its output changes shape.
        """
        channels = self.channels(choices)
        network = copy.deepcopy(self.folded)
        drop_blocks(network, choices.dropped)
        slice_channels(network, channels)
        ranks = ranks_of(self.structure, self.folded, channels, choices.rank, choices.dropped)
        return self._finish(network, channels, choices, ranks, refit, quick)

    def requantize(
        self, network: nn.Module, choices: Choices, channels: Channels | None = None
    ) -> Compressed:
        """Calibrates and quantizes a network that was pruned by the same choices and then trained.

        Nothing is corrected, equalized or rounded adaptively: it was trained to be rounded to the nearest.

        Args:
            network: float, folded, of the shape ``compress`` gives; its layers are factored as they are.
            channels: a plan's kept positions, where the choices do not say what was kept.
        """
        kept = self.channels(choices) if channels is None else channels
        ranks = installed_ranks(self.structure, network)
        plain = copy.copy(self)
        plain.recipe = self.recipe.ranges
        return plain._finish(copy.deepcopy(network).eval(), kept, choices, ranks, refit=False)

    def _finish(
        self,
        network: nn.Module,
        channels: Channels,
        choices: Choices,
        ranks: Mapping[str, Ranks],
        refit: bool,
        quick: bool = False,
    ) -> Compressed:
        structure = factored_structure(self.structure, ranks)
        choices = zero_grids(choices.factored(ranks))
        whole = install(network, ranks)
        factorizer = Factorizer(whole, ranks, self._places) if whole else None
        if quick and factorizer is not None:
            factorizer.scatter(network)
            factorizer = None
        integer = [
            layer.path
            for layer in structure.layers
            if layer.path in choices.integer and not inside(layer.path, choices.dropped)
        ]
        sites = quantized_sites(structure, integer, choices.dropped)
        thinned = thins(choices)
        watched = {} if thinned else sites
        refitted = self._pass(network, channels, choices, refit, watched, quick, factorizer)
        observer, done = refitted
        layers = [x.path for x in structure.layers if not inside(x.path, choices.dropped)]
        zeros = thin(network, choices, layers) if thinned else {}
        if thinned and sites:
            # Ranges of the tensors that the network gives as it is now.
            observer, _ = self._pass(network, channels, choices, False, sites, quick)
        if self.recipe.equalization and integer and not quick:
            pairs = equalizable(network, structure, choices.dropped)
            equalize(network, pairs, self.images)
            observer = observer_of(self.recipe.calibration, sites.values())
            observe(network, observer, self.images)
        asked = asked_bits(structure, integer, choices.activation_bits, choices.dropped)
        activations = activation_scales(sites, observer, asked)
        quantizer = LayerQuantizer(
            structure, integer, choices.dropped, activations, choices.weight_bits, self._reduce_range,
            DEFAULT_RECIPE.ranges if quick else self.recipe,
        )  # fmt: skip
        weights = quantizer.quantize(network, self.images[:2] if quick else self.images)
        settle_zeros(network, weights, zeros)
        plan = Plan(
            folded=self.folded_pairs,
            dropped=choices.dropped,
            channels=channels,
            weights=weights,
            activations=activations,
            input_shape=tuple(self.images.shape[1:]),
            ranks=ranks,
            narrow_weights=choices.narrow,
        )
        shared = {path: n for path, n in choices.codebook.items() if path in layers}
        return Compressed(network, plan, tuple(done), zeros, shared)

    def _pass(
        self,
        network: nn.Module,
        channels: Channels,
        choices: Choices,
        refit: bool,
        sites: dict[str, str],
        quick: bool,
        factorizer: Factorizer | None = None,
    ) -> tuple[RangeObserver, list[str]]:
        """One pass over the calibration images: refits in order, watches ranges, checks the output.

        A refit needs all images at once, since every layer is solved on what the solved ones before it give; so do
        statistics.
        """
        observer = observer_of(self.recipe.calibration, sites.values())
        pruned = [
            layer.path
            for layer in self.structure.layers
            if {"in", "both"} & set(channels.get(layer.path, {}))
            and not inside(layer.path, choices.dropped)
        ]
        if factorizer is not None:
            # Nothing behind the first factored layer reads quite what it read in the original.
            paths = [layer.path for layer in self.structure.layers]
            behind = paths[min(paths.index(path) for path in factorizer.ranks) :]
            pruned += [p for p in behind if p not in pruned and not inside(p, choices.dropped)]
        reconstruct = refit
        reestimator = (
            self._reestimator(
                network, channels, choices, {} if factorizer is None else factorizer.ranks
            )
            if refit and self.recipe.statistics
            else None
        )
        refit = refit and self.recipe.refit and bool(pruned)
        fitted = factorizer is not None and reconstruct and self.recipe.data_aware
        at_once = refit or fitted or reestimator is not None
        # Two images are enough for the guard alone.
        images = self.images[:2] if quick or not (at_once or sites) else self.images
        outputs = {
            path: torch.tensor(kept, dtype=torch.long)
            for path, axes in channels.items()
            if (kept := axes.get("out", axes.get("both"))) is not None
        }
        refitter = Refitter(self.targets() if refit else {}, outputs)
        handles = refitter.attach(network, pruned) if refit else []
        if factorizer is not None and fitted:
            handles += factorizer.attach(network, refitter)
        elif factorizer is not None:
            factorizer.fill(network)
        see: Callable[[str, Tensor], Tensor] = observer.see
        if reestimator is not None:
            handles += reestimator.attach()
            see = reestimator.before(see)
        observer.see(INPUT_SITE, images)
        try:
            for part in torch.split(images, len(images) if at_once else _BATCH):
                with (
                    module_stack(network) as stack,
                    torch.no_grad(),
                    OverwritingMode(stack, see, self._overwritable),
                ):
                    out = network(channels_last(part))
        except Exception as error:
            raise PruningError(
                f"the compressed network fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        expected = self.structure.graph.output_shape[1:]
        if tuple(out.shape[1:]) != expected:
            raise PruningError(
                f"the compressed network gives {list(out.shape[1:])} instead of {list(expected)}"
            )
        return observer, refitter.refitted

    def _reestimator(
        self,
        network: nn.Module,
        channels: Channels,
        choices: Choices,
        ranks: Mapping[str, Ranks],
    ) -> Reestimator | None:
        """Of the layers behind what was changed; None where nothing was."""
        # A factored layer computes something else, as one that reads fewer channels does.
        changed: Channels = {**channels, **{path: {"in": ()} for path in ranks}}
        layers, norms = downstream(self.structure, changed, choices.dropped)
        folded = dict(self.folded_pairs)
        outputs = {}
        for path in layers:
            if path in folded:
                norm = self.original.get_submodule(folded[path])
                assert isinstance(norm, nn.BatchNorm2d)
                axes = channels.get(path, {})
                kept = axes.get("out", axes.get("both"))
                output = NormOutput.of(norm)
                made = output if kept is None else output.take(torch.tensor(kept))
                outputs[last_factor(path, ranks)] = made
        factored = factored_structure(self.structure, ranks)
        sites = {layer.path: layer.call for layer in factored.layers}
        return Reestimator(network, outputs, sites, norms) if outputs or norms else None

    def targets(self) -> dict[str, Target]:
        """Outputs of the original at sampled places, computed at the first need."""
        if self._targets is None:
            readers = {m.path for g in self.groups.values() for m in g.members if m.axis != "out"}
            self._targets = collect_targets(
                self.folded, self.structure, self.images, readers, self._places
            )
        return self._targets
