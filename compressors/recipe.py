"""How a policy becomes a network without training: which channels stay, what is solved anew, how ranges are found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CompressionRecipe:
    """See the module's docstring.

    Attributes:
        criterion: channel importance, see ``importance``.
        refit: layers whose inputs were pruned are solved anew by least squares (``refit``).
        statistics: means and variances of pruned layers are brought back to those of the original.
        calibration: how activation ranges are found: ``minmax``, ``percentile`` (99.99 %), ``percentile:P``, ``mse`` or
            ``entropy``, see ``calibration.observer_of``.
        bias_correction: what quantization shifts a layer's output by on average is taken back in its bias
            (``layer_quantizer``). Two more passes over the calibration images.
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
    bias_correction: bool = False
    equalization: bool = False
    adaround: bool = False
    data_aware: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
