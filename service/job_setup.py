"""Everything a job needs before it spends time: target, network, data, decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressors import Compressor, TraceError, fold_norms, foldable, prepare
from compressors.compressor import PLACES
from compressors.least_squares import PLENTY
from compressors.recipe import CompressionRecipe
from compressors.structure import Structure, analyse, example_input
from evaluation.errors import DataError
from evaluation.pool import Scorer
from evaluation.promise import Promise, PromiseScorerBuilder
from evaluation.scoring import PolicyScorer, ScorerBuilder, save_images
from evaluation.splits import Examples, Splits, carve, gather, spread
from latency_tables import Target
from latency_tables.capabilities import Capabilities
from search_spaces.bit_widths import BitWidths
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace, build_space
from search_spaces.ranks import RankOffer
from service.errors import SourceError
from service.job_spec import JobSpec
from service.plugin_criteria import criterion_of
from service.plugin_targets import catalog_of
from service.rank_agreement import AgreedRanks
from service.rank_offers import RankOffers
from service.sources import DataBundle, Sources
from service.targets import JobTarget, common, job_targets
from service.weights import load_weights

# Calibration images that activation ranges want, however small the layers.
_LEAST_IMAGES = 256


@dataclass(frozen=True)
class LoadedNetwork:
    """A network ready to be compressed.

    Attributes:
        factory: makes the original with other weights.
        prepared: with the job's weights, norms in place.
        folded: the same with norms folded.
        network_space: its decisions on the target.
    """

    factory: Callable[[], nn.Module]
    prepared: nn.Module
    folded: nn.Module
    network_space: NetworkSpace


@dataclass(frozen=True)
class JobSetup:
    """See the module's docstring.

    Attributes:
        targets: of the job, one or several.
        compressor: makes networks that run on all of them.
    """

    spec: JobSpec
    targets: tuple[JobTarget, ...]
    network: LoadedNetwork
    data: DataBundle
    splits: Splits
    calibration: Examples
    search: Examples
    compressor: Compressor

    @property
    def target(self) -> Target:
        """The first."""
        return self.targets[0].target

    @property
    def common(self) -> Capabilities:
        """What all targets run."""
        return common(self.targets)

    def on(self, place: int) -> JobSetup:
        """The job as one of its targets sees it: the same network and data, and no other target."""
        own = self.targets[place]
        return replace(self, spec=own.spec, targets=(own,))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.calibration.inputs.shape[1:])

    def scorer(self) -> PolicyScorer:
        """The scorer of this process, which shares the compressor and runs the original once."""
        return self._scorer

    @cached_property
    def _scorer(self) -> PolicyScorer:
        return PolicyScorer(
            self.compressor, self.network.network_space, self.search, self.data.evaluate
        )

    @cached_property
    def promise(self) -> Promise | None:
        """What the search's scores are raised by for the training that follows; None where none does, where a metric of
        the user's own is no divergence, and where the objective asks for drops or a front before training."""
        spec, network_space = self.spec, self.network.network_space
        if (
            not spec.finetune.epochs
            or spec.objective != "accuracy"
            or self.data.evaluate is not None
        ):
            return None
        return Promise(network_space.space, macs_model(network_space))

    def search_builder(self, directory: Path) -> Callable[[], Scorer]:
        """What a search's workers build their scorers from; see ``scorer_builder``."""
        builder = self.scorer_builder(directory)
        return builder if self.promise is None else PromiseScorerBuilder(builder, self.promise)

    def scorer_builder(self, directory: Path) -> ScorerBuilder:
        """What workers build their scorers from; the images go to a file in ``directory`` with what the original gives
        on them.
        """
        images = directory / "images.safetensors"
        save_images(images, self.calibration, self.search, self.scorer().reference)
        return ScorerBuilder(
            self.network.prepared,
            self.network.network_space,
            images,
            self.compressor.recipe,
            self.common.reduce_range,
            self.data.evaluate,
            self.compressor.rankings,
        )


def load_network(
    source: str,
    sources: Sources,
    weights: Path | None,
    input_shape: tuple[int, int, int],
    target: Capabilities,
    scope: str = "joint",
    exclude: tuple[str, ...] = (),
    ranks: RankOffer | None = None,
    packed: bool = False,
    pattern: tuple[int, int] | None = None,
    bits: BitWidths | None = None,
) -> LoadedNetwork:
    """Network, weights and decisions.

    Args:
        target: what it is to run on, or what several have in common.
        ranks: which layers may be factored; none where left out.
        packed: the packed file's size is bounded.
        pattern: (N, M): zeros keep N of every M weights along the input; None: they lie anywhere.
        bits: that layers choose among; None: 8 and float.

    Raises:
        TrimtabError: source, weights, tracing or the space, each with what to do.
    """
    torch.manual_seed(0)  # a network without weights is the same one in every process
    factory = sources.model_factory(source)
    network = factory()
    if weights is not None:
        load_weights(network, weights)
    prepared = prepare(network)
    example = example_input(input_shape)
    unfolded = analyse(prepared, example)
    folded = prepare(prepared)
    fold_norms(folded, foldable(prepared, unfolded))
    with torch.no_grad():
        before, after = prepared(example), folded(example)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()) + 1e-6):
        raise TraceError(
            "merging batch norms into the layers before them changes what the network computes; a norm of its "
            "own kind does more than normalise"
        )
    space = build_space(folded, example, target, scope, exclude, packed, ranks, pattern, bits)
    return LoadedNetwork(factory, prepared, folded, space)


def load_job(
    spec: JobSpec,
    sources: Sources,
    weights: Path | None,
    stage: Callable[[str, str], None] = lambda _name, _message: None,
    data_dir: Path | None = None,
    ranks: Callable[[JobTarget], RankOffer] | None = None,
    plugins: Sequence[str] = (),
) -> JobSetup:
    """Loads all that the job names.

    Args:
        weights: safetensors file, or None.
        stage: told what is being done.
        data_dir: holds the tables that may be targets; None where there are only those that come with Trimtab.
        ranks: which layers may be factored on a target; by what its table knows already where left out.
        plugins: those that may be loaded, see ``service.plugins``.

    Raises:
        TrimtabError: whatever is wrong with the job's names, files and data.
    """
    targets = job_targets(spec, catalog_of(data_dir, plugins))
    criterion = criterion_of(spec.space.criterion, plugins)
    stage("load", "data")
    data = sources.data(spec.data.source)
    pool = data.train if data.validation is None else data.validation
    splits = carve(_length(data.train, "train"), _optional_length(data), spec.search_images)
    calibrating = spread(splits.calibration, _calibration_images(pool, splits))
    calibration = gather(pool, calibrating, f"the {splits.source} split")
    search = gather(pool, splits.search, f"the {splits.source} split")
    shape = tuple(calibration.inputs.shape[1:])
    if len(shape) != 3:
        raise DataError(f"inputs must be images [C, H, W]; the data gives {list(shape)}")
    if spec.objective == "latency" and data.evaluate is not None:
        raise DataError(
            "objective latency needs class labels to estimate the drop; with an evaluate of your own use "
            "objective accuracy"
        )
    stage("load", "network")
    offers: dict[str, RankOffer] = {
        one.name: RankOffers.of(one.spec, one.target, data_dir) if ranks is None else ranks(one)
        for one in targets
    }
    offer = AgreedRanks(offers) if len(offers) > 1 else offers[spec.target]
    shared = common(targets)
    network = load_network(
        spec.model.source, sources, weights, shape, shared, spec.space.scope, spec.space.exclude,
        offer, spec.packed, spec.space.pattern, spec.space.widths,
    )  # fmt: skip
    _check_classes(network.network_space.structure.graph.output_shape, data, search)
    _length(data.test, "test")
    calibration = calibration.spread(enough_images(network.network_space.structure))
    compressor = Compressor(
        network.prepared,
        calibration.inputs,
        list(network.network_space.groups.values()),
        recipe_of(spec).searched,
        shared.reduce_range,
        criterion=criterion,
    )
    return JobSetup(spec, targets, network, data, splits, calibration, search, compressor)


def recipe_of(spec: JobSpec) -> CompressionRecipe:
    """What a job asks for.

    Jobs that fine-tune bring the norms' statistics back: among 48 policies of ResNet-20 of one latency the search score
    then ranks like the accuracy after fine-tuning at 0.89, after the refit alone at 0.79. Without fine-tuning the
    policies that hardly change the network lose by it. Finalists of the others may be rounded adaptively, see
    ``FinalistRounding`` for which are.
    """
    asked = spec.recipe.model_dump()
    if asked["statistics"] is None:
        asked["statistics"] = spec.finetune.epochs > 0
    if asked["adaround"] is None:
        asked["adaround"] = spec.finetune.epochs == 0
    return CompressionRecipe(criterion=spec.space.criterion, **asked)


def _calibration_images(pool: Any, splits: Splits) -> int:
    """All of them run at once, so large images must be fewer: 512 up to 90 pixels, 83 at 224."""
    first = gather(pool, splits.calibration[:1], f"the {splits.source} split").inputs
    pixels = int(first[0, 0].numel()) if first.dim() == 4 else 1
    return max(64, min(len(splits.calibration), 2**22 // max(1, pixels)))


def enough_images(structure: Structure) -> int:
    """Calibration images that give every refit plenty of rows; more make a score dearer and no better.

    On ResNet-20 256 and 512 images gave the same divergence: means of the logarithms over 14 policies agreed to 0.001.
    """
    features = max((x.weights // max(1, x.out_channels) for x in structure.layers), default=1)
    return max(_LEAST_IMAGES, -(-PLENTY * features // PLACES))


def _length(dataset: Any, name: str) -> int:
    try:
        n = len(dataset)
    except TypeError:
        raise DataError(f"the {name} split has no length; give a map-style data set") from None
    if n == 0:
        raise DataError(f"the {name} split is empty")
    return n


def _optional_length(data: DataBundle) -> int | None:
    return None if data.validation is None else _length(data.validation, "validation")


def _check_classes(output_shape: tuple[int, ...], data: DataBundle, seen: Examples) -> None:
    if data.evaluate is not None:
        return  # the user's own metric knows what outputs mean
    if len(output_shape) != 2:
        raise DataError(
            f"the network gives {list(output_shape[1:])} an example; class scores [classes] are needed, "
            'or a data factory with its own "evaluate"'
        )
    outputs = output_shape[1]
    declared = getattr(data.train, "classes", None)
    largest = int(seen.targets.max()) + 1
    classes = len(declared) if declared is not None else largest
    if declared is None and outputs > 10 * largest:
        # Nothing declares the classes, and a few may be missing among the images seen; not nine in ten.
        classes = largest
        declared = range(largest)
    if (
        largest > outputs
        or (declared is not None and classes != outputs)
        or int(seen.targets.min()) < 0
    ):
        raise DataError(
            f"the data has {max(classes, largest)} classes and the network {outputs} outputs; use a network made "
            "for this data, e.g. with num_classes set"
        )


def default_shape(source: str, sources: Sources, given: str | None) -> tuple[int, int, int]:
    """Input shape for commands without data, from ``CxHxW`` or the network's own default.

    Raises:
        SourceError: neither is there, or the text is malformed.
    """
    if given is not None:
        parts = given.lower().split("x")
        if len(parts) != 3 or not all(p.isdigit() and int(p) > 0 for p in parts):
            raise SourceError(f"--input {given!r} is not of the form CxHxW, e.g. 3x224x224")
        return int(parts[0]), int(parts[1]), int(parts[2])
    shape = sources.default_input(source)
    if shape is None:
        raise SourceError(
            f"{source!r} has no default input; give --input CxHxW, e.g. --input 3x32x32"
        )
    return shape
