"""What exported files give and take: accuracy on the test split, latency, energy, size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.intervals import mean_ci95, share_ci95
from evaluation.splits import gather
from latency_tables.energy import Metered
from latency_tables.table_target import runner, why_no_energy
from service.anchors import Sums
from service.energy_costs import Energy
from service.job_setup import JobSetup
from service.prices import Prices

_CHUNK = 500
BASELINE = "baseline"
REPORT_SECONDS = 4.0
# Seconds each file is repeated under the energy meter.
METER_SECONDS = 1.5

Stage = Callable[[str, str, int, int], None]
# By runtime (a target with its options) and digest of the file: what each test example gave, float64 [n].
Scores = dict[tuple[str, str], NDArray[np.float64]]


@dataclass(frozen=True)
class Measured:
    """One exported file on the test split and the target.

    Attributes:
        right: bool [n] or the metric's score float [n], one a test example.
        exact: whether ``right`` counts hits, so that a share's interval applies.
        energy: see ``Energy``; null with the reason as provenance where it is not known.
    """

    right: NDArray[np.float64]
    exact: bool
    latency: dict[str, float | None]
    energy: dict[str, Any]
    size_bytes: int
    packed_bytes: int
    macs: int

    def to_json(self) -> dict[str, Any]:
        n = len(self.right)
        interval = share_ci95(int(self.right.sum()), n) if self.exact else mean_ci95(self.right)[1:]
        return {
            "accuracy": float(self.right.mean()),
            "accuracy_ci95": list(interval),
            "latency_ms": self.latency,
            "energy_mj": self.energy,
            "size_bytes": self.size_bytes,
            "packed_bytes": self.packed_bytes,
            "macs": self.macs,
        }


@dataclass(frozen=True)
class Comparison:
    """Files beside the uncompressed network.

    Attributes:
        ratios: latency over its latency, by file.
        intervals: 95 % of those that were measured; empty where they are predicted.
        energy_ratios: net energy over its net energy, where energies are known.
        measured_energy: whether energies were metered.
    """

    ratios: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    energy_ratios: Mapping[str, float]
    measured_energy: bool

    @property
    def measured(self) -> bool:
        """Whether the latencies were measured."""
        return bool(self.intervals)

    def ratio_json(self, name: str) -> dict[str, Any]:
        """A file's latency over the uncompressed network's; the interval is None where it is predicted."""
        interval = list(self.intervals[name]) if self.measured else None
        return {"estimate": self.ratios[name], "ci95": interval}

    def faster(self, name: str) -> bool:
        """Whether a file is surely (measured) or by prediction faster than the uncompressed network."""
        return (self.intervals[name][1] if self.measured else self.ratios[name]) < 1


def drop_json(before: Measured, after: Measured) -> dict[str, Any]:
    """Baseline minus compressed, on pairs: the same test examples through both files."""
    mean, low, high = mean_ci95(before.right - after.right)
    return {"estimate": mean, "ci95": [low, high], "images": len(before.right)}


def measure_files(
    setup: JobSetup,
    prices: Prices,
    files: dict[str, Path],
    packed: dict[str, int],
    macs: dict[str, int],
    predicted: dict[str, float],
    stage: Stage,
    check: Callable[[], None],
    scored: Scores | None = None,
) -> tuple[dict[str, Measured], Comparison]:
    """Accuracy on the whole test split, latency and energy of exported files.

    Where the device is here they are timed interleaved in one run. Where it is elsewhere nothing is timed: each file is
    priced from its own kernels, and ONNX Runtime on this machine's processor runs it for its accuracy.

    Args:
        files: exported files by name; ``baseline`` is the uncompressed network.
        packed: bytes of their packed files.
        predicted: latency the table predicted, as a share of the baseline's. Machines drift between
            the search and now, so it is reported as that share of the baseline's time in this run.
        scored: what files gave on another of the job's targets; gets what these give.
    """
    if setup.target.can_measure:
        latencies, ratios, intervals = _timed(setup, files, predicted, stage)
    else:
        latencies, ratios = _repriced(setup, prices, files)
        intervals = {}
    energies, metered = _energies(setup, prices, files, stage)
    scores = _scores(setup, files, stage, check, {} if scored is None else scored)
    found = {
        name: Measured(
            scores[name],
            setup.data.evaluate is None,
            latencies[name],
            energies[name].to_json() if name in energies else _no_energy(setup),
            file.stat().st_size,
            packed[name],
            macs[name],
        )
        for name, file in files.items()
    }
    whole = energies[BASELINE].net_mj if BASELINE in energies else 0.0
    shares = {name: e.net_mj / whole for name, e in energies.items()} if whole > 0 else {}
    return found, Comparison(ratios, intervals, shares, metered)


def _timed(
    setup: JobSetup, files: dict[str, Path], predicted: dict[str, float], stage: Stage
) -> tuple[dict[str, dict[str, float | None]], dict[str, float], dict[str, tuple[float, float]]]:
    stage("report", "timing the files side by side", 0, 0)
    timed = setup.target.measure(files, seconds=REPORT_SECONDS)
    latencies: dict[str, dict[str, float | None]] = {}
    for name in files:
        foreseen = predicted[name] * timed[BASELINE].p50_ms if name in predicted else None
        own = timed[name]
        latencies[name] = {"p50": own.p50_ms, "p90": own.p90_ms, "predicted_p50": foreseen}
    ratios = {name: timed.ratio(name, BASELINE) for name in files}
    return latencies, ratios, {name: timed.ratio_ci95(name, BASELINE) for name in files}


def _repriced(
    setup: JobSetup, prices: Prices, files: dict[str, Path]
) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """Sums of the files' own kernels."""
    times = {
        name: prices.anchors.latency(Sums.of(setup.target.kernels(file), prices.learned.rows))
        for name, file in files.items()
    }
    latencies: dict[str, dict[str, float | None]] = {
        name: {"p50": None, "p90": None, "predicted_p50": ms} for name, ms in times.items()
    }
    return latencies, {name: ms / times[BASELINE] for name, ms in times.items()}


def _energies(
    setup: JobSetup, prices: Prices, files: dict[str, Path], stage: Stage
) -> tuple[dict[str, Energy], bool]:
    """Metered where the device is here and has a counter, else told from kernels; none where nothing is known."""
    target = setup.target
    if target.can_measure and isinstance(target, Metered) and target.energy_absent() is None:
        stage("report", "metering the files' energy", 0, 0)
        metered = target.measure_energy(files, seconds=METER_SECONDS)
        energies = {
            name: Energy(
                e.net_mj,
                e.gross_mj,
                "measured",
                f"{e.meter}, idle {e.idle_w:.3g} W measured before",
            )
            for name, e in metered.items()
        }
        return energies, True
    if prices.energy is None:
        return {}, False
    costs = prices.energy
    return {name: costs.of(target.kernels(file)) for name, file in files.items()}, False


def _no_energy(setup: JobSetup) -> dict[str, Any]:
    reason = why_no_energy(setup.target) or "energies of this network's kernels are not known"
    return {
        "value": None,
        "gross": None,
        "idle": None,
        "provenance": "not measured",
        "source": reason,
    }


def _scores(
    setup: JobSetup,
    files: dict[str, Path],
    stage: Stage,
    check: Callable[[], None],
    known: Scores,
) -> dict[str, NDArray[np.float64]]:
    """float64 [n] of each file: whether each test example is right, or what the metric of the user's own says.

    The same bytes in the same runtime are run once.
    """
    spec = runner(setup.target).spec
    keys = {n: (spec, hashlib.sha256(file.read_bytes()).hexdigest()) for n, file in files.items()}
    missing = {keys[name]: file for name, file in files.items() if keys[name] not in known}
    known.update(_run(setup, missing, stage, check))
    return {name: known[key] for name, key in keys.items()}


def _run(
    setup: JobSetup,
    files: Mapping[tuple[str, str], Path],
    stage: Stage,
    check: Callable[[], None],
) -> Scores:
    test, total = setup.data.test, len(setup.data.test)  # type: ignore[arg-type]
    runs = runner(setup.target)
    scores: dict[tuple[str, str], list[NDArray[np.float64]]] = {key: [] for key in files}
    if not files:
        return {}
    for start in range(0, total, _CHUNK):
        check()
        stage("report", "running the files on the test split", start, total)
        examples = gather(test, range(start, min(total, start + _CHUNK)), "the test split")
        inputs = np.ascontiguousarray(examples.inputs.numpy())
        for key, file in files.items():
            outputs = torch.from_numpy(np.array(runs.run(file, inputs)))
            if setup.data.evaluate is None:
                score = (outputs.argmax(1) == examples.targets).double().numpy()
            else:
                score = np.asarray(
                    torch.as_tensor(setup.data.evaluate(outputs, examples.targets)).double()
                )
            scores[key].append(score)
    return {key: np.concatenate(parts) for key, parts in scores.items()}
