"""How a policy becomes a network without training: which channels stay, what is solved anew, how ranges are found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class CompressionRecipe:
    """See the module's docstring.

    Attributes:
        criterion: channel importance, see ``importance``; or the name of a ``CustomCriterion``.
        refit: layers whose inputs were pruned are solved anew by least squares (``refit``).
        statistics: means and variances of pruned layers are brought back to those of the original.
        calibration: how activation ranges are found: ``minmax``, ``percentile`` (99.99 %), ``percentile:P``, ``mse`` or
            ``entropy``, see ``calibration.observer_of``.
        bias_correction: what quantization does to the mean and the spread of each layer's output is taken back in its
            biases and scales (``layer_quantizer.corrected``). Two more passes over the calibration images. None: for
            networks with a layer of fewer than 8 bits; at 8 bits nothing is gained.
        equalization: weight ranges of neighbouring layers are evened out before quantization (``equalization``).
            One more pass, two where rectifiers have a cap.
        adaround: weights are rounded up or down by what reconstructs the layer's output best (``adaround``). Seconds
            to a minute a network: for what is shipped, not for what is searched.
        data_aware: factors of low-rank layers minimise the error of the layer's output on the calibration images, not
            that of its weight.
    """

    criterion: str = "l1"
    refit: bool = True
    statistics: bool = False
    calibration: str = "minmax"
    bias_correction: bool | None = None
    equalization: bool = False
    adaround: bool = False
    data_aware: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def searched(self) -> CompressionRecipe:
        """Without what takes too long for every policy of a search."""
        return replace(self, adaround=False)

    @property
    def ranges(self) -> CompressionRecipe:
        """How ranges are found, and nothing else: for networks whose weights were trained to be rounded."""
        return CompressionRecipe(
            self.criterion, calibration=self.calibration, bias_correction=False
        )

    def corrects(self, bits: Iterable[int]) -> bool:
        """Whether bias correction is done for integer layers with weights of these bits."""
        if self.bias_correction is not None:
            return self.bias_correction
        return any(width < 8 for width in bits)
