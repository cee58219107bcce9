"""Scores policies on a GPU, where thousands of them are wanted."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from compressors.call_graph import channels_last
from compressors.compressor import Compressed
from compressors.quantization import QuantizedNetwork
from evaluation.scoring import PolicyScorer, ScorerBuilder
from search_spaces.evaluation import Evaluation
from search_spaces.policy import Policy

_BATCH = 500


class DeviceScorer:
    """Compresses policies and runs them on a device with torch; satisfies ``evaluation.pool.Scorer``.

    The same recipe, images and score as the scorer's own, with fake quantization in place of the exported file:
    where a sum falls between two activation levels the two round apart, and sums are added in another order.
    On twelve policies of the zoo's networks scores were within 0.003 nats. All search images are always run. Rankings
    of channels are the scorer's, so that every device keeps the same ones.

    Args:
        scorer: of the network, on the CPU.
        device: as torch names it, e.g. ``cuda``.
    """

    def __init__(self, scorer: PolicyScorer, device: str) -> None:
        # Ten bits of mantissa are too few to tell small divergences.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._scorer = scorer
        self._compressor = scorer.compressor.to(device)
        self._images = channels_last(scorer.search_images.to(device))

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:  # noqa: ARG002
        """See ``Scorer.score``.

        Raises:
            TrimtabError: as ``PolicyScorer.score``.
        """
        start = time.perf_counter()
        choices = self._scorer.choices(policy)
        compressed = self._compressor.compress(choices)
        found = self._scorer.score_outputs(self._outputs(compressed))
        return replace(found, seconds=time.perf_counter() - start)

    def _outputs(self, compressed: Compressed) -> torch.Tensor:
        network = QuantizedNetwork(compressed.network, compressed.plan.activations).eval()
        with torch.no_grad():
            parts = [network(part) for part in torch.split(self._images, _BATCH)]
        return torch.cat(parts).cpu()


@dataclass(frozen=True)
class DeviceScorerBuilder:
    """Builds a ``DeviceScorer`` in a worker process."""

    builder: ScorerBuilder
    device: str

    def __call__(self) -> DeviceScorer:
        return DeviceScorer(self.builder(), self.device)


def on_device(builder: ScorerBuilder, device: str) -> ScorerBuilder | DeviceScorerBuilder:
    """What builds scorers that run on a device; the builder itself for ``cpu``, whose scorers run exported files."""
    return builder if device == "cpu" else DeviceScorerBuilder(builder, device)
