"""What kernel times make of whole networks, learned from a few networks timed end to end.

A network's time is taken to be ::

    fixed + scale_float * time(float kernels) + scale_integer * time(integer kernels)
    time = alone + coldness * (cold - alone)
    coldness = min(most, start + slope * weights in MiB), at least 0

What a run costs beside its kernels is timed apart, with a network that does nothing.
A small network finds everything in the caches and costs what its kernels cost repeated alone; the more
weights one run touches, the more of it comes from further away. The two scales take up what the machine
did differently when kernels and networks were timed. Five numbers are fitted to some sixteen networks, with
priors that hold where the networks say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from latency_tables import Kernel, KernelUse, Measurements, Target
from latency_tables.errors import MeasurementError
from service.kernel_rows import Rows

# A run in which the timing thread waited longer than this share for a processor is done again.
QUIET = 0.03
TRIES = 3

# Residuals of a good fit, and the priors: log scales, start, slope by MiB, most.
_SIGMA = 0.03
# Fitted once to 48 networks cut from ResNet-20 and MobileNetV2 (2 MiB of second-level cache); fitted to one of
# the two they price the other's networks with a mean error of 5 % (benchmarks/RESULTS.md).
_PRIOR = np.array([0.0, 0.0, 0.02, 0.1, 0.22])
_PRIOR_SD = np.array([0.3, 0.15, 0.1, 0.15, 0.2])
# What a network takes beyond its kernels, warm: between nodes the runtime has work to do.
_BETWEEN = 1.04
# What leave-one-out errors can never show: a network is timed to a percent or two.
TIMED_ERROR = 0.015
# Times an anchor counts that was measured because the search ended there.
FINALIST_WEIGHT = 3.0


@dataclass(frozen=True)
class Sums:
    """Kernel times of one network, microseconds.

    Attributes:
        float_us, integer_us: repeated alone.
        float_cold_us, integer_cold_us: between other kernels.
        weights_mib: constants that one run touches.
    """

    float_us: float
    integer_us: float
    float_cold_us: float
    integer_cold_us: float
    weights_mib: float

    @classmethod
    def of(cls, uses: Iterable[KernelUse], rows: Rows) -> Sums:
        found = {"float": [0.0, 0.0], "integer": [0.0, 0.0]}
        weights = 0.0
        for use in uses:
            alone, cold = rows.of(use.kernel)
            sums = found[use.kernel.arithmetic]
            sums[0] += use.count * alone
            sums[1] += use.count * cold
            weights += use.count * constants_mib(use.kernel)
        floats, integers = found["float"], found["integer"]
        return cls(floats[0], integers[0], floats[1], integers[1], weights)


def constants_mib(kernel: Kernel) -> float:
    """MiB of weights and other constants a kernel reads."""
    return sum(s.bytes for s in kernel.inputs if s is not None and s.constant) / 2**20


@dataclass(frozen=True)
class Anchor:
    """A network that was timed.

    Attributes:
        ratio: its latency over the uncompressed network's, in one run.
        weight: how much it counts; one that counts more than 1 cannot be an outlier.
    """

    sums: Sums
    ratio: float
    weight: float = 1.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Anchor:
        return cls(Sums(**data["sums"]), float(data["ratio"]), float(data["weight"]))


@dataclass(frozen=True)
class Anchors:
    """The fitted model; see the module's docstring.

    Attributes:
        latency_ms: p50 of the uncompressed network.
        float_ms_per_us, integer_ms_per_us: the scales.
        start, slope, most: of the coldness.
        error: root mean square of the relative errors when each anchor is left out in turn.
        timed: the anchors, the uncompressed network first.
        integer_shift: logarithm of how much dearer integers were against floats when networks were timed than when
            kernels were, told from the two reference networks; where the fit of ``integer_ms_per_us`` starts from.
        fixed_ms: of a run that does nothing.
    """

    latency_ms: float
    float_ms_per_us: float
    integer_ms_per_us: float
    start: float
    slope: float
    most: float
    error: float
    timed: tuple[Anchor, ...]
    integer_shift: float = 0.0
    fixed_ms: float = 0.0

    @classmethod
    def fit(
        cls,
        latency_ms: float,
        timed: Sequence[Anchor],
        integer_shift: float = 0.0,
        fixed_ms: float = 0.0,
    ) -> Anchors:
        """Fits the model to what was timed.

        Raises:
            MeasurementError: no kernel of the uncompressed network has a price.
        """
        sums = _columns(timed)
        base = sums[0, 0] + sums[0, 1]
        if base <= 0:
            raise MeasurementError("no kernel of the network could be timed on this target")
        measured = latency_ms * np.array([a.ratio for a in timed])
        weights = np.sqrt([a.weight for a in timed])
        # A network is never faster than its fixed cost; where noise says so, half of what was measured counts.
        kernels = np.maximum(measured - fixed_ms, 0.5 * measured)
        centre = float(np.median(kernels / np.maximum(sums[:, 0] + sums[:, 1], 1e-9)))
        prior = _PRIOR + np.array([0.0, integer_shift, 0.0, 0.0, 0.0])
        parameters = _fit(sums, measured, weights, centre, prior, fixed_ms)
        errors = []
        for i in range(len(timed)):
            others = np.arange(len(timed)) != i
            if others.sum() >= 3:
                again = _fit(
                    sums[others], measured[others], weights[others], centre, prior, fixed_ms
                )
                predicted = fixed_ms + _predict(again, sums[i : i + 1], centre)[0]
                errors.append(predicted / measured[i] - 1)
        error = float(np.sqrt(np.mean(np.square(errors)))) if errors else _SIGMA
        log_float, log_integer, start, slope, most = (float(p) for p in parameters)
        return cls(
            latency_ms,
            centre * float(np.exp(log_float)),
            centre * float(np.exp(log_float + log_integer)),
            start,
            slope,
            most,
            max(error, TIMED_ERROR),
            tuple(timed),
            integer_shift,
            fixed_ms,
        )

    @classmethod
    def unanchored(cls, integer_shift: float = 0.0, fixed_ms: float = 0.0) -> Anchors:
        """What kernels alone say, at the table's own reference time: the priors and no network that was timed."""
        _, _, start, slope, most = (float(p) for p in _PRIOR)
        by_float = 1e-3 * _BETWEEN
        by_integer = by_float * float(np.exp(integer_shift))
        return cls(
            0.0, by_float, by_integer, start, slope, most, _SIGMA, (), integer_shift, fixed_ms
        )

    def with_finalist(self, sums: Sums, ratio: float) -> Anchors:
        """Fitted anew with a network the search ended at."""
        timed = [*self.timed, Anchor(sums, ratio, FINALIST_WEIGHT)]
        return Anchors.fit(self.latency_ms, timed, self.integer_shift, self.fixed_ms)

    def at_shift(self, integer_shift: float) -> Anchors:
        """The same fit where integers stand otherwise to floats: a busy neighbour came or went."""
        moved = float(np.exp(integer_shift - self.integer_shift))
        return replace(
            self,
            integer_ms_per_us=self.integer_ms_per_us * moved,
            integer_shift=integer_shift,
        )

    def coldness(self, weights_mib: float) -> float:
        return float(np.clip(self.start + self.slope * weights_mib, 0.0, self.most))

    def latency(self, sums: Sums) -> float:
        """Milliseconds of a network."""
        kernels = self._alone(sums) + self.coldness(sums.weights_mib) * self._added(sums)
        return self.fixed_ms + kernels

    def _alone(self, sums: Sums) -> float:
        return self.float_ms_per_us * sums.float_us + self.integer_ms_per_us * sums.integer_us

    def _added(self, sums: Sums) -> float:
        """Milliseconds that full coldness adds."""
        cold_float, cold_integer = sums.float_cold_us, sums.integer_cold_us
        return self.float_ms_per_us * (cold_float - sums.float_us) + self.integer_ms_per_us * (
            cold_integer - sums.integer_us
        )

    def linear(self, at: Sums, rows: Rows) -> tuple[Callable[[Kernel], float], float]:
        """The model as a sum over kernels, exact to first order around one network.

        Cheapest completions need sums; coldness times what it adds is a product of two of them.

        Returns:
            Milliseconds of a kernel, and a constant to add to their sum.
        """
        coldness = self.coldness(at.weights_mib)
        bends = 0.0 < self.start + self.slope * at.weights_mib < self.most
        by_mib = self.slope * self._added(at) if bends else 0.0

        def cost(kernel: Kernel) -> float:
            alone, cold = rows.of(kernel)
            scale = (
                self.integer_ms_per_us if kernel.arithmetic == "integer" else self.float_ms_per_us
            )
            return scale * (alone + coldness * (cold - alone)) + by_mib * constants_mib(kernel)

        return cost, self.fixed_ms - by_mib * at.weights_mib

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _columns(timed: Sequence[Anchor]) -> NDArray[np.float64]:
    return np.array([astuple(a.sums) for a in timed])


def _predict(
    p: NDArray[np.float64], sums: NDArray[np.float64], centre: float
) -> NDArray[np.float64]:
    coldness = np.clip(p[2] + p[3] * sums[:, 4], 0.0, max(p[4], 0.0))
    floats = sums[:, 0] + coldness * (sums[:, 2] - sums[:, 0])
    integers = sums[:, 1] + coldness * (sums[:, 3] - sums[:, 1])
    return np.asarray(centre * np.exp(p[0]) * (floats + np.exp(p[1]) * integers))


def _fit(
    sums: NDArray[np.float64],
    measured: NDArray[np.float64],
    weights: NDArray[np.float64],
    centre: float,
    prior: NDArray[np.float64],
    fixed_ms: float,
) -> NDArray[np.float64]:
    sure = weights > 1.0

    def residuals(p: NDArray[np.float64]) -> NDArray[np.float64]:
        off = weights * ((fixed_ms + _predict(p, sums, centre)) / measured - 1) / _SIGMA
        # A run that was disturbed must not pull the others along. A finalist was timed at length and must be met.
        off = np.where(sure, off, _soft_l1(off))
        return np.concatenate([off, (p - prior) / _PRIOR_SD])

    found = least_squares(residuals, prior)
    parameters = np.asarray(found.x)
    parameters[4] = max(parameters[4], 0.0)
    return parameters


def _soft_l1(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Residuals whose squares are ``2 (sqrt(1 + r^2) - 1)``: squares near zero, absolute values far from it."""
    return np.asarray(residuals * np.sqrt(2 / (1 + np.sqrt(1 + residuals**2))))


def measure_quietly(target: Target, models: Mapping[str, Path], seconds: float) -> Measurements:
    """``target.measure``, again where the machine was busy with something else; the quietest run counts.

    Raises:
        MeasurementError: as ``target.measure``.
    """
    best = target.measure(models, seconds=seconds)
    for _ in range(TRIES - 1):
        if best.waited <= QUIET:
            break
        again = target.measure(models, seconds=seconds)
        best = again if again.waited < best.waited else best
    return best
