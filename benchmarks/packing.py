"""Bytes of the packed file and accuracy without training, for the same setting of every layer.

Every network is packed for real and unpacked again. Beside the packed file stand what Zstandard at its strongest makes
of the same integers (one byte each) with everything else as in the packed file, and the order-0 entropy of each
tensor's integers, below which no code with one table a tensor can go. "Times smaller" is against the raw 32-bit
parameters of the original, norms folded. Accuracy is that of the exported file on the test split.

    python benchmarks/packing.py python:cifar_zoo:resnet56 --code-path ../shared/zoo
        --weights ../shared/zoo/weights/resnet56.safetensors --data python:cifar_zoo:cifar10
        [--images 10000] [--calibration 256] [--settings int8 4bit ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import nn

from benchmarks.some_images import some_of
from compressors import Choices, Compressor, Plan, prepare
from compressors.exported import ExportedNetwork
from compressors.packed import pack, unpack
from compressors.packed.container import Sections
from compressors.packed.files import network_files
from compressors.packed.tensors import Way, write_tensor
from evaluation.intervals import share_ci95
from evaluation.splits import Examples, carve, gather
from service.sources import Sources
from service.weights import load_weights


@dataclass(frozen=True)
class Setting:
    """What every layer gets. ``bits`` are those of an integer layer; a codebook leaves it float."""

    bits: int | None = None
    zeros: float = 0.0
    codebook: int | None = None
    pattern: tuple[int, int] | None = None

    def choices(self, layers: list[str]) -> Choices:
        return Choices(
            integer=frozenset(layers if self.bits else ()),
            weight_bits=dict.fromkeys(layers, self.bits) if self.bits else {},
            sparsity=dict.fromkeys(layers, self.zeros) if self.zeros else {},
            codebook=dict.fromkeys(layers, self.codebook) if self.codebook else {},
            patterns=dict.fromkeys(layers, self.pattern) if self.pattern else {},
        )


SETTINGS: Mapping[str, Setting] = {
    "fp32": Setting(),
    "int8": Setting(8),
    "6bit": Setting(6),
    "5bit": Setting(5),
    "4bit": Setting(4),
    "3bit": Setting(3),
    "2bit": Setting(2),
    "int8+50%": Setting(8, 0.5),
    "4bit+25%": Setting(4, 0.25),
    "4bit+50%": Setting(4, 0.5),
    "3bit+50%": Setting(3, 0.5),
    "4bit+2:4": Setting(4, pattern=(2, 4)),
    "fp32+50%": Setting(zeros=0.5),
    "codebook256": Setting(codebook=256),
    "codebook32": Setting(codebook=32),
    "codebook16": Setting(codebook=16),
    "codebook8": Setting(codebook=8),
    "codebook16+50%": Setting(zeros=0.5, codebook=16),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--images", type=int, default=10_000, help="of the test split")
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    network = sources.model_factory(args.source)()
    load_weights(network, args.weights)
    data = sources.data(args.data)
    splits = carve(len(data.train), None, 16)  # type: ignore[arg-type]
    some = np.random.default_rng(0).permutation(splits.calibration)[: args.calibration].tolist()
    images = gather(data.train, some, "the train split").inputs
    some_tests = some_of(len(data.test), args.images)  # type: ignore[arg-type]
    test = gather(data.test, some_tests, "the test split")
    total = len(test)
    compressor = Compressor(prepare(network), images, [])
    raw = 4 * sum(p.numel() for p in compressor.folded.parameters())
    layers = [layer.path for layer in compressor.structure.layers]
    rows = []
    print(f"{args.source}: {raw} bytes of 32-bit parameters, {total} test images")
    print(HEADING)
    for name in args.settings:
        rows.append(row(name, SETTINGS[name].choices(layers), compressor, test, raw))
        print(line(rows[-1]), flush=True)
    if args.json:
        found = {"source": args.source, "data": args.data, "raw_bytes": raw, "images": total}
        args.json.write_text(json.dumps(found | {"rows": rows}, indent=1))
    return 0


def row(
    name: str, choices: Choices, compressor: Compressor, test: Examples, raw: int
) -> dict[str, Any]:
    """One setting, packed, unpacked and run."""
    made = compressor.compress(choices)
    files = network_files(made.network, made.plan)
    began = time.perf_counter()
    data = pack(*files)
    packed = time.perf_counter()
    back = unpack(data)
    ended = time.perf_counter()
    if back != files:
        raise SystemExit(f"{name}: the packed file does not give the same bytes back")
    sections = Sections.from_bytes(data)
    rest = len(data) - len(sections.part("CODE"))
    zstd, entropy, weights = other_codes(made.network, made.plan)
    outputs = ExportedNetwork(made.network, made.plan)(test.inputs)
    right = int((outputs.argmax(1) == test.targets).sum())
    return {
        "setting": name,
        "packed_bytes": len(data),
        "times_smaller": raw / len(data),
        "zstd_bytes": rest + zstd if weights else None,
        "entropy_bytes": rest + entropy if weights else None,
        "bits_a_weight": 8 * len(sections.part("CODE")) / weights if weights else None,
        "accuracy": right / len(test),
        "accuracy_ci95": list(share_ci95(right, len(test))),
        "pack_seconds": (packed - began) - (ended - packed),  # packing unpacks once to make sure
        "unpack_seconds": ended - packed,
    }


def other_codes(network: nn.Module, plan: Plan) -> tuple[int, float, int]:
    """Bytes of the integers by Zstandard, by their entropies, and how many integers there are."""
    symbols, entropy = [], 0.0
    for name, tensor in network.state_dict().items():
        if tensor.dtype != torch.float32:
            continue
        bits = tensor.contiguous().flatten().numpy().view(np.uint32)
        written = write_tensor(name, bits, tuple(tensor.shape), plan)
        if written.way in (Way.GRID, Way.SHARED, Way.SPARSE):
            counts = np.unique(written.symbols, return_counts=True)[1]
            share = counts / counts.sum()
            entropy -= float((counts * np.log2(share)).sum()) / 8
            symbols.append(written.symbols.astype(np.uint8))
    data = b"".join(s.tobytes() for s in symbols)
    return len(zstandard.ZstdCompressor(level=19).compress(data)), entropy, len(data)


HEADING = (
    f"{'setting':16}{'packed':>10}{'smaller':>9}{'zstd -19':>10}{'entropy':>10}{'bits':>7}"
    f"{'accuracy':>10}{'95 %':>16}{'pack':>8}{'unpack':>8}"
)


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""

    def number(key: str, form: str) -> str:
        return "-" if row[key] is None else format(row[key], form)

    low, high = row["accuracy_ci95"]
    interval = f"{100 * low:.2f} to {100 * high:.2f}"
    return (
        f"{row['setting']:16}{row['packed_bytes']:>10}{row['times_smaller']:>8.2f}x"
        f"{number('zstd_bytes', '.0f'):>10}{number('entropy_bytes', '.0f'):>10}"
        f"{number('bits_a_weight', '.3f'):>7}{100 * row['accuracy']:>9.2f}%{interval:>16}"
        f"{row['pack_seconds']:>7.2f}s{row['unpack_seconds']:>7.2f}s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
