"""The search score of a policy: how far the compressed network's outputs are from the original's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressors.call_graph import channels_last
from compressors.compressor import DEFAULT_RECIPE, Choices, Compressed, Compressor
from compressors.cut_files import CutFiles
from compressors.errors import ExportError
from compressors.exported import BATCH as EXPORTED_BATCH
from compressors.exported import Export, ExportedNetwork
from compressors.exporter import export_onnx
from compressors.plan import Plan
from compressors.recipe import CompressionRecipe
from evaluation.errors import ScoringError
from evaluation.splits import Examples
from evaluation.stopping import hopeless, precise, stages
from evaluation.subsample import Estimate, Sample
from latency_tables.errors import TrimtabError
from search_spaces.evaluation import Evaluation
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import NetworkSpace
from search_spaces.policy import Policy

BATCH = 32
# Policies whose cut files are held against real exports before cut files are trusted.
VERIFIED = 2
_SEED = 20180625  # of the order in which search images are run; fixed, so that every worker scores alike
Metric = Callable[[Tensor, Tensor], Any]
Runner = Callable[[Tensor], Tensor]


def outputs_of(network: nn.Module, inputs: Tensor, batch: int = BATCH) -> Tensor:
    """Outputs float32 [n, classes]."""
    with torch.no_grad():
        return torch.cat([network(channels_last(part)) for part in torch.split(inputs, batch)])


def runner_of(compressed: Compressed, export: Export = export_onnx) -> Runner:
    """Runs inputs float [n, ...] as the exported file does, on any target; outputs float32 [n, ...].

    On 2,000 images ONNX Runtime takes about a sixth of the time of fake quantization in torch for MobileNetV2 and
    a third for ResNet-20, export included. torch runs what cannot be exported.

    Args:
        export: writes the file.
    """
    try:
        exported = ExportedNetwork(compressed.network, compressed.plan, export=export)
    except ExportError:
        return partial(outputs_of, compressed.runnable())

    def run(inputs: Tensor) -> Tensor:
        try:
            return exported(inputs)
        except ExportError:
            return outputs_of(compressed.runnable(), inputs)

    return run


def outputs_of_compressed(compressed: Compressed, inputs: Tensor) -> Tensor:
    """Outputs float32 [n, ...], see ``runner_of``."""
    return runner_of(compressed)(inputs)


def divergence(original: Tensor, compressed: Tensor) -> NDArray[np.float64]:
    """Kullback-Leibler divergence in nats of each example's class distribution, float64 [n].

    Args:
        original, compressed: logits float [n, classes].
    """
    p, q = F.log_softmax(original.double(), 1), F.log_softmax(compressed.double(), 1)
    return np.asarray((p.exp() * (p - q)).sum(1).clamp_min(0).numpy())


class PolicyScorer:
    """Scores policies of one network; satisfies ``evaluation.pool.Scorer``.

    The search score is minus the mean divergence of the compressed network's class distribution from the
    original's, in nats: it needs no labels, and ranks policies better than accuracy does before training. With a
    metric of the user's own the score is its mean. Outputs are those of the policy's exported file, see
    ``outputs_of_compressed``.

    Search images are run in one fixed random order, those that the original is not sure of earlier (``subsample``).
    Where a score to beat is given, a policy that surely misses it on the first of them, or whose score is precise
    enough by then (``stopping``), is not run on the others: its score is then an estimate of the mean over all of them,
    its interval that of the images seen.

    Args:
        compressor: of the network.
        network_space: whose policies are scored.
        examples: search images.
        metric: ``(outputs, targets) -> per-example score``.
        reference: the original's outputs on the search images, as another scorer found them; run when left out.
    """

    def __init__(
        self,
        compressor: Compressor,
        network_space: NetworkSpace,
        examples: Examples,
        metric: Metric | None = None,
        reference: Tensor | None = None,
    ) -> None:
        self.compressor = compressor
        self._space = network_space
        self._examples = examples
        self._metric = metric
        self._reference = reference

    @property
    def search_images(self) -> Tensor:
        """Inputs float [n, ...] that policies are scored on."""
        return self._examples.inputs

    @cached_property
    def reference(self) -> Tensor:
        """The original's outputs on the search images."""
        if self._reference is not None:
            return self._reference
        shape = tuple(self._examples.inputs.shape[1:])
        original = Compressed(self.compressor.folded, Plan(input_shape=shape))
        return outputs_of_compressed(original, self._examples.inputs)

    @cached_property
    def sample(self) -> Sample:
        """The order in which search images are run."""
        if self._metric is not None:
            return Sample.plain(len(self._examples), _SEED)
        return Sample.stratified(self.reference, _SEED)

    @cached_property
    def export(self) -> Export:
        """Writes files of policies: cut from one export where some of them prove to be what a real export gives."""
        probes = [self._space.choices(p) for p in sample_policies(self._space, VERIFIED, seed=1)]
        try:
            return CutFiles(self.compressor, EXPORTED_BATCH, probes)
        except TrimtabError:
            return export_onnx

    def compress(self, policy: Policy) -> Compressed:
        """The network a policy gives, refitted and calibrated."""
        return self.compressor.compress(self.choices(policy))

    def choices(self, policy: Policy) -> Choices:
        """A policy in the network's terms."""
        return self._space.choices(policy)

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:
        """See ``Scorer.score``."""
        start = time.perf_counter()
        evaluation = self.score_compressed(self.compress(policy), score_to_beat, self.export)
        return replace(evaluation, seconds=time.perf_counter() - start)

    def score_compressed(
        self,
        compressed: Compressed,
        score_to_beat: float | None = None,
        export: Export = export_onnx,
    ) -> Evaluation:
        """Scores what the compressed network's exported file computes.

        Args:
            score_to_beat: see ``Scorer.score``; all search images are run where it is left out.
            export: writes the file.

        Raises:
            ScoringError: its outputs are not finite, or the metric fails.
        """
        run = runner_of(compressed, export)
        parts: list[Tensor] = []
        seen = 0
        for upto in stages(len(self._examples)) if score_to_beat is not None else [None]:
            chosen = self.sample.order[seen:upto]
            parts.append(run(self._examples.inputs[chosen]))
            seen += len(chosen)
            outputs, rows = torch.cat(parts), self.sample.order[:seen]
            estimate = self.sample.estimate(self._per_example(outputs, rows))
            if hopeless(estimate, score_to_beat) or precise(estimate):
                break
        return self._evaluation(outputs, rows, estimate, self.sample.estimate)

    def score_network(self, network: nn.Module) -> Evaluation:
        """Scores a network as torch runs it, e.g. one that is being fine-tuned, on all search images.

        Of a compressed network the score differs from ``score_compressed`` (by at most 0.0007 nats over twelve
        sampled policies): where a sum falls between two activation levels the runtimes may round it apart.

        Raises:
            ScoringError: its outputs are not finite, or the metric fails.
        """
        return self.score_outputs(outputs_of(network, self._examples.inputs))

    def score_outputs(self, outputs: Tensor) -> Evaluation:
        """Scores what a network gave on all search images, wherever it ran: outputs float32 [n, classes].

        Raises:
            ScoringError: they are not finite, or the metric fails.
        """
        rows = torch.arange(len(self._examples))
        estimate = Estimate.of_all(self._per_example(outputs, rows))
        return self._evaluation(outputs, rows, estimate, Estimate.of_all)

    def _per_example(self, outputs: Tensor, rows: Tensor) -> NDArray[np.float64]:
        """Scores float64 [n] of outputs on the search images of the given numbers."""
        if not torch.isfinite(outputs).all():
            raise ScoringError("the compressed network's outputs are not finite")
        targets = self._examples.targets[rows]
        if self._metric is None:
            per_example = -divergence(self.reference[rows], outputs)
        else:
            try:
                per_example = np.asarray(
                    torch.as_tensor(self._metric(outputs, targets)).double().numpy()
                )
            except Exception as error:
                raise ScoringError(
                    f"the data's metric failed: {type(error).__name__}: {error}"
                ) from error
            if per_example.shape != (len(targets),):
                raise ScoringError(
                    f"the data's metric must give one score an example, [{len(targets)}], "
                    f"not {list(per_example.shape)}"
                )
        if not np.isfinite(per_example).all():
            raise ScoringError("the data's metric gave a value that is not finite")
        return per_example

    def _evaluation(
        self,
        outputs: Tensor,
        rows: Tensor,
        estimate: Estimate,
        estimated: Callable[[NDArray[np.float64]], Estimate],
    ) -> Evaluation:
        """The evaluation of outputs on the search images of the given numbers.

        Args:
            estimate: of the score.
            estimated: estimates other means over the same images.
        """
        score, interval = (estimate.mean,), (estimate.low, estimate.high)
        if self._metric is not None:
            return Evaluation(score, interval, images=estimate.images)
        targets = self._examples.targets[rows]
        right = (outputs.argmax(1) == targets).double().numpy()
        right_before = (self.reference[rows].argmax(1) == targets).double().numpy()
        top1, drop = estimated(right).mean, estimated(right_before - right)
        return Evaluation(
            score, interval, top1, (drop.mean, drop.low, drop.high), images=estimate.images
        )


@dataclass(frozen=True)
class ScorerBuilder:
    """Builds a ``PolicyScorer`` in a worker process: small to send, images come from a file.

    Attributes:
        original: prepared network.
        network_space: as built by the driver.
        images: file written by ``save_images``.
        recipe, reduce_range, rankings: see ``Compressor``. A worker ranks no channels itself: gradients differ in
            their last digits with the number of threads, and every worker must keep the same channels.
        metric: see ``PolicyScorer``.
    """

    original: nn.Module
    network_space: NetworkSpace
    images: Path
    recipe: CompressionRecipe = DEFAULT_RECIPE
    reduce_range: bool = False
    metric: Metric | None = None
    rankings: Mapping[str, NDArray[np.int64]] | None = None

    def __call__(self) -> PolicyScorer:
        tensors = load_file(self.images)
        groups = list(self.network_space.groups.values())
        compressor = Compressor(
            self.original,
            tensors["calibration"],
            groups,
            self.recipe,
            self.reduce_range,
            rankings=self.rankings,
        )
        examples = Examples(tensors["inputs"], tensors["targets"])
        return PolicyScorer(
            compressor, self.network_space, examples, self.metric, tensors.get("reference")
        )


def save_images(
    path: Path, calibration: Examples, search: Examples, reference: Tensor | None = None
) -> None:
    """Writes what a ``ScorerBuilder`` reads.

    Args:
        reference: the original's outputs on the search images, so that no worker need run it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "calibration": calibration.inputs,
        "inputs": search.inputs,
        "targets": search.targets,
    }
    if reference is not None:
        tensors["reference"] = reference
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
