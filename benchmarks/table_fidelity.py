"""How well sums of kernel rows predict whole networks.

Random ResNet-20s (inner widths at random, blocks dropped) of ``cifar_zoo``, fp32 or int8 (QDQ),
random weights: time does not depend on them. Every distinct kernel is measured once into one table,
then all networks are timed in one interleaved run beside the same reference network. Prints one
line a network and the summary: end to end over sum, mean absolute error after one common scale
fitted leaving the network itself out, and Spearman's rank correlation.

    python benchmarks/table_fidelity.py [--networks 12] [--precision fp32|int8] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from latency_tables import LatencyTable, estimate_error, network_cost, parse_target

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"


def random_resnet20(generator: random.Random) -> tuple[nn.Module, list[int]]:
    """ResNet-20 with random inner widths, multiples of 4 (8 above 16), and random blocks dropped.

    The width of a dropped block is given as 0; the first block of a stage is never dropped.
    """
    import cifar_zoo

    network = cifar_zoo.resnet20()
    widths = []
    for stage, full in ((network.layer1, 16), (network.layer2, 32), (network.layer3, 64)):
        for index, block in enumerate(stage):
            if index and generator.random() < 0.3:
                stage[index] = nn.Identity()
                widths.append(0)
                continue
            step = 4 if full <= 16 else 8
            width = generator.randrange(step, full + 1, step)
            widths.append(width)
            first, second = block.conv1, block.conv2
            block.conv1 = nn.Conv2d(first.in_channels, width, 3, first.stride, 1, bias=False)
            block.bn1 = nn.BatchNorm2d(width)
            block.conv2 = nn.Conv2d(width, second.out_channels, 3, 1, 1, bias=False)
    return network.eval(), widths


def export(network: nn.Module, path: Path, int8: bool) -> None:
    """Writes the network with batch 1, quantized as ``quantize_static`` does it when ``int8``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False, opset_version=17
        )
    if not int8:
        return
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = self._batches()

        def _batches(self) -> Iterator[dict[str, Any]]:
            for seed in range(4):
                noise = np.random.default_rng(seed).normal(size=(1, 3, 32, 32))
                yield {"input.1": noise.astype(np.float32)}

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        Noise(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--target", default="x86-ort")
    parser.add_argument("--seconds", type=float, default=1.5, help="of end-to-end timing a network")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.append(str(ZOO))
    torch.set_num_threads(1)
    generator, target = random.Random(options.seed), parse_target(options.target)
    with tempfile.TemporaryDirectory() as folder:
        paths, widths = {}, {}
        for index in range(options.networks):
            network, widths[str(index)] = random_resnet20(generator)
            paths[str(index)] = Path(folder) / f"{index}.onnx"
            export(network, paths[str(index)], options.precision == "int8")
        uses = {name: target.kernels(path) for name, path in paths.items()}
        begin = time.monotonic()
        result = target.measure_kernels(use.kernel for group in uses.values() for use in group)
        seconds = time.monotonic() - begin
        table = LatencyTable.empty(target).with_rows(result.rows)
        for failure in result.failures:
            print("FAILED", failure.kernel.describe(), failure.reason)
        print(f"{target.spec} on {target.host().processor}, {target.host().runtime}")
        print(f"{len(table)} kernels in {seconds:.0f} s, references {dict(result.references_us)} us")
        measured = target.measure(paths, seconds=options.seconds)
    print(
        f"waited for a processor: kernels {result.waited:.0%}, networks {measured.waited:.0%} "
        "of the time (0 % on a machine of one's own)"
    )
    scale_us = table.references_us.get("float", 1.0)
    sums = np.asarray([network_cost(uses[name], table, model=False).total_us for name in paths])
    times = np.asarray([measured.at_reference(name, scale_us) for name in paths])
    ratios = times / sums
    halves = [
        float(np.ptp(measured.ratio_ci95(name, "(reference)"))) / 2 * scale_us for name in paths
    ]
    errors = []
    for index, name in enumerate(paths):
        others = np.delete(ratios, index)
        errors.append(abs(sums[index] * float(np.median(others)) / times[index] - 1))
        print(
            f"{widths[name]}: sum {sums[index]:7.1f} us, measured {times[index]:7.1f} "
            f"+- {halves[index]:.1f} us, "
            f"ratio {ratios[index]:.3f}, error {errors[-1]:.1%}"
        )
    within = np.asarray(errors)
    print(
        f"end to end / sum {ratios.min():.2f} to {ratios.max():.2f}; mape {within.mean():.1%} "
        f"(raw {np.abs(sums / times - 1).mean():.1%}), within 5 % {np.mean(within <= 0.05):.0%}, "
        f"within 10 % {np.mean(within <= 0.1):.0%}, spearman {spearmanr(sums, times)[0]:.3f}"
    )
    error = estimate_error(table)
    print(
        f"modelled rows, leave one out: mape {error.mape:.1%}, 90 % within {error.p90:.1%} "
        f"({error.count} rows, {error.without_family} without family)"
    )


if __name__ == "__main__":
    main()
