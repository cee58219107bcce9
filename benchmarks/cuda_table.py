"""Measures the latency and energy table of ``cuda-torch`` on the GPU of this machine, and how well it predicts.

    python benchmarks/cuda_table.py OUT [--resume DIR] [--again energy networks] [--max-seconds 540] [--batch 32]
        [--models DIR] [--variants 20] [--smoke]

It needs torch, nvidia-ml-py, numpy and onnx. Networks are torchvision's (random weights) or the ONNX files of a
folder; each is also measured at random widths, a few more of torchvision as they are. OUT gets ``table.json``
(kernels), ``energy.json``, ``networks.json`` (whole networks), ``fidelity.json`` (sums of kernels against them),
``failures.json`` and ``summary.txt``, written often: after the time limit ``--resume OUT`` goes on.
``benchmarks/cuda_report.py --take OUT`` makes the committed measurements of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.cuda_kernels import (
    PRECISIONS,
    products,
    shown_convolutions,
    shown_products,
    spread,
    staircase,
)
from benchmarks.cuda_networks import exported, narrowed, torchvision_model, with_batch
from latency_tables.cuda import CudaTarget
from latency_tables.cuda_bench import Replay, time_graphs
from latency_tables.cuda_energy import kernel_energy, replay_energy
from latency_tables.cuda_graph import Network, in_bfloat16, load_program, read_kernels
from latency_tables.errors import TrimtabError
from latency_tables.kernel import Kernel, merge_uses
from latency_tables.table import LatencyTable

TORCHVISION = ("resnet18", "mobilenet_v2", "resnet50")
# Measured as they are only.
OTHERS = ("resnet34", "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf", "vit_b_16")
# Seconds that the phases after the kernels' energies need.
LAST_SECONDS = 95.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", type=Path, metavar="DIR", help="files of an earlier run")
    parser.add_argument(
        "--again",
        nargs="*",
        default=(),
        choices=("energy", "networks"),
        help="what to measure again although the earlier run has it",
    )
    parser.add_argument("--max-seconds", type=float, default=540.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--models", type=Path, help="a folder of ONNX files in float32")
    parser.add_argument("--variants", type=int, default=20, help="random widths of each network")
    parser.add_argument("--energy-seconds", type=float, default=1.0, help="a kernel")
    parser.add_argument("--energy-kernels", type=int, default=220)
    parser.add_argument("--smoke", action="store_true", help="a little of everything")
    args = parser.parse_args()
    if args.smoke:
        args.variants, args.energy_kernels = 2, 6
    run = Run(args)
    run.all()
    return 0


class Run:
    """The state of a run: what was measured so far, and the clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.begun = args, time.monotonic()
        self.target = CudaTarget(args.batch)
        self.out: Path = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.meter = self.target.meter()
        self.table = LatencyTable.empty(self.target)
        self.energy: dict[str, Any] = {"idle": [], "kernels": {}, "networks": {}}
        self.networks: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.lines: list[str] = []
        self.earlier: set[str] = set()
        if args.resume:
            self.load(args.resume)
        self.programs: dict[tuple[str, int], Any] = {}
        self.say(f"{self.target.host().to_json()}")

    def load(self, folder: Path) -> None:
        table = LatencyTable.load(folder / "table.json", allow_other_host=True)
        if table.host != self.target.host():
            self.say(f"the earlier table is of {table.host.to_json()}: left out")
            return
        self.table, self.earlier = table, set(table.rows)
        # Kernels that failed are tried again.
        for name in {"energy", "networks"}.difference(self.args.again):
            path = folder / f"{name}.json"
            if path.exists():
                setattr(self, name, json.loads(path.read_text()))

    @property
    def left(self) -> float:
        return float(self.args.max_seconds - (time.monotonic() - self.begun))

    def say(self, text: str) -> None:
        line = f"[{time.monotonic() - self.begun:6.1f}] {text}"
        self.lines.append(line)
        print(line, flush=True)

    def save(self) -> None:
        self.table.save(self.out / "table.json")
        for name in ("energy", "networks", "failures"):
            (self.out / f"{name}.json").write_text(json.dumps(getattr(self, name)))
        (self.out / "summary.txt").write_text("\n".join(self.lines) + "\n")

    def all(self) -> None:
        phases = (
            self.check,
            self.probe,
            self.idle,
            self.base_kernels,
            self.base_networks,
            self.variant_kernels,
            self.variant_networks,
            self.network_energies,
            self.kernel_energies,
            self.repeat,
            self.idle,
            self.other_networks,
            self.fidelity,
        )
        for phase in phases:
            if self.left < 5 and phase != self.fidelity:
                self.say(f"no time left for {phase.__name__}")
                continue
            self.say(f"--- {phase.__name__}")
            try:
                phase()
            except Exception:
                self.say(f"{phase.__name__} failed: {traceback.format_exc()}")
            self.save()

    # What is run

    @cached_property
    def sources(self) -> dict[str, Any]:
        """The uncompressed networks as ONNX models, by name."""
        if self.args.models:
            paths = sorted(self.args.models.glob("*.onnx"))
            found = {path.stem: onnx.load(str(path)) for path in paths}
        else:
            names = TORCHVISION[:2] if self.args.smoke else TORCHVISION
            found = {name: torchvision_model(name) for name in names}
        return {name: with_batch(model, self.args.batch) for name, model in found.items()}

    @cached_property
    def others(self) -> dict[str, Any]:
        """More networks, those left out that cannot be read."""
        found = {}
        for name in () if self.args.models or self.args.smoke else OTHERS:
            try:
                model = torchvision_model(name, self.args.batch)
                program = load_program(model)
                for variant in (program, in_bfloat16(program)):
                    read_kernels(variant)
            except Exception as error:
                self.say(f"{name} cannot be read: {str(error)[:200]}")
            else:
                found[name] = model
        return found

    def labels(self, name: str, precision: str = "") -> list[str]:
        """A network and its random widths, such as ``resnet18/bfloat16/7``; 0 is the whole network."""
        return [
            f"{name}/{p}/{seed}"
            for p in PRECISIONS
            if p == (precision or p)
            for seed in range(self.args.variants + 1)
        ]

    def program(self, label: str) -> Any:
        name, precision, seed = label.split("/")
        key = name, int(seed)
        if key not in self.programs:
            base = self.sources.get(name) or self.others[name]
            self.programs[key] = load_program(narrowed(base, key[1]) if key[1] else base)
        program = self.programs[key]
        return in_bfloat16(program) if precision == "bfloat16" else program

    # Phases

    def check(self) -> None:
        """The interpreter gives what PyTorch gives."""
        if self.args.models:
            return
        import torchvision

        torch.manual_seed(0)
        module = torchvision.models.resnet18(weights=None).eval()
        x = torch.randn(4, 3, 64, 64)
        program = load_program(exported(module, (4, 3, 64, 64)))
        with torch.no_grad():
            wanted = module(x)
            for name, variant in (("float32", program), ("bfloat16", in_bfloat16(program))):
                network = Network(variant, "cuda")
                (eager,) = network(x.cuda())
                given = x.cuda().contiguous(memory_format=torch.channels_last)
                replay = Replay(lambda network=network, given=given: network(given))
                replay()
                torch.cuda.synchronize()
                (captured,) = replay.result
                for kind, y in (("eager", eager), ("graph", captured)):
                    error = (y.float().cpu() - wanted).norm() / wanted.norm()
                    self.say(f"resnet18 {name} {kind}: relative error {float(error):.2e}")
        from latency_tables.cuda_operators import _REFUSED

        self.say(f"convolutions that cuDNN refused to fuse: {len(_REFUSED)}")

    def probe(self) -> None:
        """Convolution and ReLU in one call or two, with and without cuDNN's own search."""
        if self.earlier:
            return
        shapes = [(64, 64, 56, 3), (128, 128, 28, 3), (256, 256, 14, 3), (512, 512, 7, 3)]
        shapes += [(63, 63, 28, 3), (72, 72, 28, 3), (256, 64, 56, 1), (1024, 256, 14, 1)]
        for dtype in (torch.float32, torch.bfloat16):
            for shape in shapes[: 2 if self.args.smoke else None]:
                if self.left > 300 or self.args.smoke:
                    self.say(f"{shape} {dtype}: {probed(*shape, dtype)}")

    def idle(self) -> None:
        torch.cuda.synchronize()
        time.sleep(1.0)
        span = self.meter.idle(2.0 if self.args.smoke else 5.0)
        self.energy["idle"].append({"watts": span.watts, "sm_mhz": self.meter.sm_mhz()})
        self.say(
            f"idle: {span.watts:.1f} W over {span.seconds:.1f} s, SM {self.meter.sm_mhz()} MHz"
        )

    @property
    def idle_watts(self) -> float:
        return float(np.median([found["watts"] for found in self.energy["idle"]]))

    def measure(self, kernels: Iterable[Kernel], what: str) -> None:
        """Adds the rows that are missing, in parts, so that little is lost when time runs out."""
        missing = [k for k in self.table.missing(kernels) if k.key not in self.failures]
        self.say(f"{what}: {len(missing)} kernels to measure")
        begun, part = time.monotonic(), 320
        for start in range(0, len(missing), part):
            if self.left < 10:
                break
            found = self.target.measure_kernels(
                missing[start : start + part], max_seconds=self.left - 10
            )
            self.table = self.table.with_rows(found.rows)
            for failure in found.failures:
                self.failures[failure.kernel.key] = failure.reason
                if len(self.failures) < 40:
                    self.say(f"failed: {failure.reason[:200]}")
            self.save()
            done = min(start + part, len(missing))
            self.say(
                f"{what}: {done} of {len(missing)}, {time.monotonic() - begun:.0f} s, "
                f"reference {dict(found.references_us)}"
            )

    def base_kernels(self) -> None:
        kernels = [*staircase(self.args.batch, 8 if self.args.smoke else 1)]
        kernels += products(self.args.smoke)
        for name in self.sources:
            for precision in PRECISIONS:
                program = self.program(f"{name}/{precision}/0")
                kernels += [use.kernel for use in read_kernels(program)]
        self.measure(kernels, "staircase, products, uncompressed networks")
        self.show_staircase()
        self.show_products()

    def show_staircase(self) -> None:
        for precision in PRECISIONS:
            words = []
            for kernel in staircase(self.args.batch, 1):
                row = self.table.lookup(kernel)
                spec = kernel.inputs[0]
                if row and spec and spec.dtype == precision and spec.shape[1] % 8 in (0, 7):
                    words.append(f"{spec.shape[1]}: {row.median_us:.1f}")
            self.say(f"3x3 {precision} us by channels: {', '.join(words)}")

    def show_products(self) -> None:
        for kernel in products(self.args.smoke)[:12]:
            row = self.table.lookup(kernel)
            if row is not None:
                self.say(f"{kernel.describe()}: {row.median_us:.2f} us")

    def base_networks(self) -> None:
        for name in self.sources:
            self.time_networks([f"{name}/{p}/0" for p in PRECISIONS])

    def variant_kernels(self) -> None:
        for name in self.sources:
            begun = time.monotonic()
            programs = [self.program(label) for label in self.labels(name)]
            kernels = [use.kernel for program in programs for use in read_kernels(program)]
            self.say(f"{name}: read {len(programs)} networks in {time.monotonic() - begun:.1f} s")
            self.measure(kernels, f"{name} at random widths")

    def variant_networks(self) -> None:
        for name in self.sources:
            for precision in PRECISIONS:
                self.time_networks(self.labels(name, precision))

    def time_networks(self, labels: Sequence[str]) -> None:
        """Times networks round robin, unless all are known from an earlier run."""
        if self.left < 15 or set(labels) <= self.networks.keys():
            return
        graphs, uses = {}, {}
        for label in labels:
            program = self.program(label)
            try:
                graphs[label] = self.captured(program)
            except (TrimtabError, RuntimeError) as error:
                self.say(f"{label} does not run: {str(error)[:200]}")
                continue
            uses[label] = [(u.kernel.key, u.count) for u in merge_uses(read_kernels(program))]
        measured = time_graphs(graphs, min(0.25 * len(graphs), max(self.left - 10, 1)))
        for label, latency in measured.items():
            self.networks[label] = {
                **asdict(latency),
                "uses": uses[label],
                "reference_us": measured.reference_us,
            }
        words = [f"{label} {measured[label].p50_ms:.3f} ms" for label in list(graphs)[:3]]
        self.say(
            f"{len(graphs)} networks: {', '.join(words)}, reference {measured.reference_us:.1f}"
        )
        del graphs
        torch.cuda.empty_cache()

    def captured(self, program: Any) -> Replay:
        """The network in a CUDA graph, with an input on the GPU."""
        network = Network(program, "cuda")
        x = network.example(torch.Generator("cuda").manual_seed(0))
        return Replay(lambda: network(*x))

    def kernel_energies(self) -> None:
        chosen = spread([row.kernel for row in self.table.rows.values()], self.args.energy_kernels)
        chosen = [*shown_products(), *shown_convolutions(self.args.batch), *chosen]
        found: dict[str, Any] = self.energy["kernels"]
        for number, kernel in enumerate(chosen):
            if self.left < (10 if self.args.smoke else LAST_SECONDS):
                self.say(f"energies: stopped at {number} of {len(chosen)}")
                break
            if kernel.key in found or kernel.key in self.failures:
                continue
            try:
                energy = kernel_energy(
                    kernel, self.meter, self.idle_watts, self.args.energy_seconds
                )
            except (TrimtabError, RuntimeError) as error:
                self.say(f"no energy of {kernel.describe()}: {str(error)[:200]}")
                continue
            found[kernel.key] = {**asdict(energy), "kernel": kernel.describe()}
            if number % 20 == 0 or number < 12:
                self.say(
                    f"{kernel.describe()}: {energy.us:.2f} us, {energy.watts:.0f} W, "
                    f"{energy.uj:.0f} uJ gross, {energy.net_uj:.0f} net, {energy.sm_mhz} MHz"
                )
            if number % 20 == 0:
                torch.cuda.empty_cache()
                self.save()
        slower = [
            energy["us"] / self.table.rows[key].median_us
            for key, energy in found.items()
            if key in self.table.rows
        ]
        if slower:
            self.say(
                f"{len(found)} kernels with energy; in their loops they take {np.median(slower):.3f} "
                f"of the time in the table, 10 % under {np.quantile(slower, 0.1):.3f}, 10 % over "
                f"{np.quantile(slower, 0.9):.3f}"
            )

    def network_energies(self) -> None:
        seeds = range(2 if self.args.smoke else 6)
        self.measure_energies(
            f"{name}/{p}/{seed}" for seed in seeds for name in self.sources for p in PRECISIONS
        )

    def other_networks(self) -> None:
        labels = [f"{name}/{p}/0" for name in self.others for p in PRECISIONS]
        kernels = [use.kernel for label in labels for use in read_kernels(self.program(label))]
        self.measure(kernels, "other networks")
        for label in labels:
            self.time_networks([label])
        self.measure_energies(labels)

    def measure_energies(self, labels: Iterable[str]) -> None:
        found: dict[str, Any] = self.energy["networks"]
        for label in labels:
            if label in found or label not in self.networks or self.left < 10:
                continue
            replay = self.captured(self.program(label))
            energy = replay_energy(replay, 1, self.meter, self.idle_watts, 1.0)
            found[label] = asdict(energy)
            self.say(
                f"{label}: {energy.us / 1e3:.3f} ms, {energy.watts:.0f} W, "
                f"{energy.uj / 1e3:.1f} mJ gross, {energy.net_uj / 1e3:.1f} net"
            )
            del replay

    def repeat(self) -> None:
        """A second look at some kernels: from this process or, after ``--resume``, from another."""
        rows = [self.table.rows[key] for key in sorted(self.table.rows)]
        some = rows[:: max(1, len(rows) // 80)]
        again = self.target.measure_kernels([r.kernel for r in some], max_seconds=self.left - 8)
        for other in (False, True):
            moved = [
                row.at_reference(self.table.rows[row.kernel.key].reference_us).median_us
                / self.table.rows[row.kernel.key].median_us
                - 1
                for row in again.rows
                if (row.kernel.key in self.earlier) == other
            ]
            if moved:
                size = np.abs(moved)
                where = "another process" if other else "this process"
                self.say(
                    f"repeated, first in {where}: {len(moved)} kernels, median |change| "
                    f"{np.median(size):.2%}, 90 % within {np.quantile(size, 0.9):.2%}, "
                    f"mean change {np.mean(moved):+.2%}"
                )
        known, found = dict(self.energy["kernels"]), []
        kernels = {row.kernel.key: row.kernel for row in rows}
        for key in [key for key in known if key in kernels][:: max(1, len(known) // 5)][:5]:
            if self.left < 12:
                break
            energy = kernel_energy(
                kernels[key], self.meter, self.idle_watts, self.args.energy_seconds
            )
            found.append(energy.uj / known[key]["uj"] - 1)
        if found:
            self.say(f"energies repeated: changes {', '.join(f'{c:+.1%}' for c in found)}")

    def fidelity(self) -> None:
        """Sums of kernels against whole networks."""
        warm, cold, truth, labels, launches = [], [], [], [], []
        for label, network in self.networks.items():
            rows = [(self.table.rows.get(key), count) for key, count in network["uses"]]
            if any(row is None for row, _ in rows):
                self.say(f"{label}: kernels without a row")
                continue
            drift = self.table.references_us["float"] / network["reference_us"]
            truth.append(1e3 * network["p50_ms"] * drift)
            warm.append(sum(count * row.median_us for row, count in rows if row))
            cold.append(sum(count * (row.cold_us or 0.0) for row, count in rows if row))
            launches.append(sum(count for _, count in rows))
            labels.append(label)
        if not labels:
            self.say("no network whose kernels are all known")
            return
        warm_, cold_, truth_ = (np.asarray(v) for v in (warm, cold, truth))
        result: dict[str, Any] = {"labels": labels, "warm_us": warm, "cold_us": cold}
        result |= {"measured_us": truth, "kernels": launches}
        groups = sorted({label.rpartition("/")[0] for label in labels})
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            predicted = warm_ + share * (cold_ - warm_)
            self.say(f"cold share {share}: all networks, no anchor: {scores(predicted, truth_)}")
            for group in groups:
                mine = np.asarray([label.startswith(group + "/") for label in labels])
                base = [i for i, label in enumerate(labels) if label == f"{group}/0"]
                words = f"  {group}: no anchor {scores(predicted[mine], truth_[mine])}"
                if base:
                    factor = truth_[base[0]] / predicted[base[0]]
                    words += f" | anchored {scores(factor * predicted[mine], truth_[mine])}"
                    words += f" (factor {factor:.3f})"
                self.say(words)
        (self.out / "fidelity.json").write_text(json.dumps(result))


def probed(inner: int, outer: int, size: int, window: int, dtype: torch.dtype) -> str:
    """Microseconds of a convolution with what follows it, in one call and in several."""

    def random(*shape: int) -> Any:
        x = torch.randn(shape, device="cuda").to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    x, z = random(32, inner, size, size), random(32, outer, size, size)
    w, bias = random(outer, inner, window, window) * 0.05, random(outer)
    rest: Any = ([1, 1], [window // 2] * 2, [1, 1], 1)
    plain: Any = (1, window // 2)
    calls: dict[str, Callable[[], Any]] = {
        "conv": lambda: torch.conv2d(x, w, None, *plain),
        "conv+bias": lambda: torch.conv2d(x, w, bias, *plain),
        "conv+bias, relu_": lambda: torch.conv2d(x, w, bias, *plain).relu_(),
        "one call": lambda: torch.cudnn_convolution_relu(x, w, bias, *rest),
        "conv+bias, add_, relu_": lambda: torch.conv2d(x, w, bias, *plain).add_(z).relu_(),
        "one call with add": lambda: torch.cudnn_convolution_add_relu(x, w, z, 1.0, bias, *rest),
    }

    def twenty(call: Callable[[], Any]) -> None:
        for _ in range(20):
            call()

    words = []
    for tuned in (False, True):
        torch.backends.cudnn.benchmark = tuned
        words.append("tuned:" if tuned else "untuned:")
        for name, call in calls.items():
            try:
                begun = time.monotonic()
                replay = Replay(lambda call=call: twenty(call))
                took = time.monotonic() - begun
                words.append(f"{name} {replay.us(10) / 20:.2f} (made in {took:.2f} s);")
            except RuntimeError as error:
                words.append(f"{name} refused: {str(error).splitlines()[0][:60]};")
    torch.backends.cudnn.benchmark = False
    try:
        pairs = (("conv+bias, relu_", "one call"), ("conv+bias, add_, relu_", "one call with add"))
        for two, one in pairs:
            wanted, given = calls[two]().float(), calls[one]().float()
            words.append(f"error {float((wanted - given).norm() / wanted.norm()):.1e}")
    except RuntimeError:
        words.append("no error known")
    return " ".join(words)


def scores(predicted: Any, truth: Any) -> str:
    """How near predictions are."""
    error = np.abs(predicted / truth - 1)
    ranks = [np.argsort(np.argsort(v)) for v in (predicted, truth)]
    spearman = np.corrcoef(*ranks)[0, 1] if len(truth) > 2 else float("nan")
    return (
        f"n {len(truth)}, within 5 % {np.mean(error <= 0.05):.2f}, 10 % {np.mean(error <= 0.1):.2f}, "
        f"MAPE {error.mean():.3f}, bias {np.mean(predicted / truth - 1):+.3f}, Spearman {spearman:.3f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
