"""Activation ranges from calibration images: how far each quantized tensor's grid reaches.

One pass over the images serves every method. Min-max keeps two numbers a tensor; the others keep a histogram of a
sample of its values, which grows with the largest magnitude seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from compressors.call_graph import INPUT_SITE, SiteMode, channels_last, module_stack
from compressors.errors import QuantizationError
from compressors.histogram import Histogram, Range, least_divergence, least_error, percentile
from compressors.plan import ActivationScale
from compressors.quantization import shared_bits

METHODS = ("minmax", "percentile", "mse", "entropy")
# Values an image that a histogram takes of a tensor; all of them cost as much as the network itself.
_SAMPLE = 1024
_BATCH = 32
_PERCENTILE = 99.99

# Histogram, observed range and number of levels to the range covered.
Rule = Callable[[Histogram, Range, int], Range]


def fit_activation(low: float, high: float, bits: int = 8) -> ActivationScale:
    """Unsigned scale covering ``[min(low, 0), max(high, 0)]`` with ``2^bits`` levels.

    Unsigned because ONNX Runtime is 2.5 times slower on ResNet-56 with signed activations.

    Raises:
        QuantizationError: fewer than 2 or more than 8 bits, or ends that are not finite.
    """
    if bits not in range(2, 9):
        raise QuantizationError(f"activations are quantized to 2 to 8 bits, not {bits}")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise QuantizationError("an activation is not finite on the calibration images")
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-8:
        high = low + 1e-8
    scale = np.float32((high - low) / (2**bits - 1))
    if low == 0.0:
        # Never above what a cap (ReLU6) lets through, or the runtime keeps the cap as a float node.
        scale = np.nextafter(scale, np.float32(0))
    return ActivationScale(float(scale), round(-low / float(scale)), bits)


class RangeObserver:
    """Collects the smallest and largest value of each site over calibration batches (min-max calibration)."""

    def __init__(self, sites: Iterable[str]) -> None:
        self.ranges: dict[str, Range] = {}
        self._sites = set(sites)

    def see(self, site: str, value: Tensor) -> Tensor:
        if site in self._sites:
            innermost = value.is_contiguous(memory_format=torch.channels_last)
            # In the order of memory, or aminmax makes a copy first.
            value_in_order = value.permute(0, 2, 3, 1) if innermost else value
            low, high = (float(end) for end in value_in_order.aminmax())
            seen = self.ranges.get(site, (math.inf, -math.inf))
            self.ranges[site] = (min(seen[0], low), max(seen[1], high))
            self._count(site, value_in_order, max(-low, high))
        return value

    def _count(self, site: str, value: Tensor, reach: float) -> None:
        """Takes more of a tensor than its ends."""

    def range_of(self, site: str, levels: int) -> Range:  # noqa: ARG002
        """What the grid of a site shall cover.

        Args:
            levels: of the grid.
        """
        return self.ranges[site]


class HistogramObserver(RangeObserver):
    """Collects histograms beside the ends and leaves the range to a rule."""

    def __init__(self, sites: Iterable[str], rule: Rule) -> None:
        super().__init__(sites)
        self.histograms: dict[str, Histogram] = {}
        self._rule = rule

    def _count(self, site: str, value: Tensor, reach: float) -> None:
        flat = value.reshape(-1)
        step = max(1, value[0].numel() // _SAMPLE)
        # A step that shares no factor with the sizes visits every channel alike.
        while math.gcd(step, len(flat)) > 1:
            step += 1
        self.histograms.setdefault(site, Histogram()).add(flat[::step].float(), reach)

    def range_of(self, site: str, levels: int) -> Range:
        low, high = self.ranges[site]
        seen = (min(low, 0.0), max(high, 0.0))
        histogram = self.histograms[site]
        if not histogram.counts.any():
            return seen  # fewer values than the sample's step
        low, high = self._rule(histogram, seen, levels)
        return max(low, seen[0]), min(high, seen[1])


def observer_of(calibration: str, sites: Iterable[str]) -> RangeObserver:
    """The observer of a calibration method.

    Args:
        calibration: ``minmax``; ``percentile`` (99.99 % of the values) or ``percentile:P`` with another share;
            ``mse``, see ``least_error``; ``entropy``, see ``least_divergence``.

    Raises:
        QuantizationError: no such method.
    """
    name, _, argument = calibration.partition(":")
    if name == "percentile":
        try:
            percent = float(argument or _PERCENTILE)
        except ValueError:
            percent = math.nan
        if not 50 < percent <= 100:
            raise QuantizationError(
                f"calibration {calibration!r}: the percentile must be above 50 and at most 100, "
                "as in percentile:99.9"
            )
        return HistogramObserver(sites, lambda h, _range, _levels: percentile(h, percent))
    if argument or name not in METHODS:
        raise QuantizationError(
            f"no calibration method {calibration!r}; there are {', '.join(METHODS)} "
            "and percentile:P as in percentile:99.9"
        )
    if name == "minmax":
        return RangeObserver(sites)
    return HistogramObserver(sites, least_error if name == "mse" else least_divergence)


def observe(network: nn.Module, observer: RangeObserver, images: Tensor) -> None:
    """Shows an observer every tensor of a network on calibration images float [n, C, H, W]."""
    observer.see(INPUT_SITE, images)
    for part in torch.split(images, _BATCH):
        with module_stack(network) as stack, torch.no_grad(), SiteMode(stack, observer.see):
            network(channels_last(part))


def activation_scales(
    sites: Mapping[str, str], observer: RangeObserver, bits: Mapping[str, int] | None = None
) -> dict[str, ActivationScale]:
    """Scale of every quantized site from what was observed of the site it shares with.

    Args:
        sites: see ``quantized_sites``.
        bits: asked of sites. Sites with a common scale take the most asked of any; 8 where none is asked.

    Raises:
        QuantizationError: a bit width that does not exist.
    """
    widths = shared_bits(sites, bits or {})
    scales = {}
    for site, root in sites.items():
        if root not in scales:
            width = widths[site]
            scales[root] = fit_activation(*observer.range_of(root, 2**width), width)
    return {site: scales[root] for site, root in sorted(sites.items())}
