"""Prices of a network on its target: kernels found, measured, anchored on whole networks, and learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressors import Choices, Compressor, Plan, Skeleton
from compressors.errors import ExportError
from compressors.exporter import export_onnx, save_onnx
from compressors.structure import inside
from latency_tables import Kernel, KernelUse, LatencyTable, TableStore, Target, merge_uses
from latency_tables.errors import MeasurementError
from search_spaces import Policy, Pricer
from search_spaces.latency_model import LatencyFit, PricedGraph, fit_latency, sample_policies
from search_spaces.network_space import NetworkSpace, macs_model, runs_integer, size_model

SAMPLES = 240
# Policies whose cut graph is held against a real export before cut graphs are trusted.
VERIFIED = 2
# Seconds spent on kernels a job's table lacks; what is left is modelled from measured neighbours.
MEASURE_SECONDS = 300.0
ANCHOR_SECONDS = 3.0

Stage = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Anchors:
    """Whole networks timed end to end, and what they make of kernel sums.

    Attributes:
        latency_ms: p50 of the uncompressed network.
        float_ms_per_us, integer_ms_per_us: what a microsecond of float or integer kernels counts.
    """

    latency_ms: float
    float_ms_per_us: float
    integer_ms_per_us: float

    def to_json(self) -> dict[str, float]:
        return {
            "latency_ms": self.latency_ms,
            "float_ms_per_us": self.float_ms_per_us,
            "integer_ms_per_us": self.integer_ms_per_us,
        }


@dataclass(frozen=True)
class Prices:
    """What a job prices with.

    Attributes:
        pricer: without limits.
        uncompressed: quantities of the uncompressed network: measured latency, exact size and MACs.
        fit: how well the local terms hold.
        table: snapshot of the rows used.
        anchors: see ``Anchors``.
        baseline: exported uncompressed network.
        modelled_share: part of the uncompressed network's kernel time that was not measured.
        notes: what a reader of the report must know.
    """

    pricer: Pricer
    uncompressed: dict[str, float]
    fit: LatencyFit
    table: LatencyTable
    anchors: Anchors
    baseline: Path
    modelled_share: float
    notes: tuple[str, ...]


class Graphs:
    """Exported graphs of policies: cut from one export where that is exact, else exported one by one."""

    def __init__(self, compressor: Compressor, network_space: NetworkSpace, target: Target) -> None:
        self._compressor = compressor
        self._space = network_space
        self._target = target
        self._skeleton: Skeleton | None = None
        self.note: str | None = None
        try:
            skeleton = Skeleton(compressor, target.batch)
            for policy in sample_policies(network_space, VERIFIED, seed=1):
                choices = network_space.choices(policy)
                if _kernel_counts(
                    target, skeleton.model(choices).SerializeToString()
                ) != _kernel_counts(target, self._export(choices)):
                    raise ExportError("a cut graph has other kernels than the exported one")
            self._skeleton = skeleton
        except ExportError as error:
            self.note = f"pricing exported every sampled policy, because {error}"

    def _export(self, choices: Choices) -> bytes:
        made = self._compressor.compress(choices, refit=False, quick=True)
        data: bytes = export_onnx(made.network, made.plan, self._target.batch).SerializeToString()
        return data

    def of(self, choices: Choices) -> tuple[list[KernelUse], int]:
        """Kernels with their owning layers, and the file's bytes."""
        if self._skeleton is not None:
            data: bytes = self._skeleton.model(choices).SerializeToString()
        else:
            data = self._export(choices)
        return self._target.kernels(data), len(data)


def _kernel_counts(target: Target, model: bytes) -> Counter[str]:
    counts: Counter[str] = Counter()
    for use in target.kernels(model):
        counts[use.kernel.key] += use.count
    return counts


def integer_layers(
    network_space: NetworkSpace, target: Target, exclude: tuple[str, ...]
) -> frozenset[str]:
    """All layers that the reference "uniform int8" quantizes."""
    return frozenset(
        layer.path
        for layer in network_space.structure.layers
        if runs_integer(layer, target) and not inside(layer.path, exclude)
    )


def learn_prices(
    compressor: Compressor,
    network_space: NetworkSpace,
    target: Target,
    data_dir: Path,
    workdir: Path,
    stage: Stage,
    check: Callable[[], None],
    exclude: tuple[str, ...] = (),
    pin: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _key, value: value,
    measure_seconds: float = MEASURE_SECONDS,
) -> Prices:
    """See the module's docstring.

    Args:
        data_dir: holds the tables, which the next job uses again.
        workdir: gets the exported uncompressed network.
        check: raises where the job must stop.
        exclude: modules left as they are.
        pin: stores anchors and rows for later attempts at the same job, which must price alike.

    Raises:
        MeasurementError, KernelError, ExportError: the target cannot run or time the network.
    """
    graphs = Graphs(compressor, network_space, target)
    notes = [graphs.note] if graphs.note else []
    space = network_space.space
    policies = [space.uncompressed(), *sample_policies(network_space, SAMPLES, seed=0)]
    sampled: list[tuple[Policy, list[KernelUse], int]] = []
    for k, policy in enumerate(policies):
        check()
        if k % 10 == 0:
            stage("kernels", "reading the runtime's graphs", k, len(policies))
        uses, size = graphs.of(network_space.choices(policy))
        sampled.append((policy, uses, size))
    integer = Choices(integer=integer_layers(network_space, target, exclude))
    integer_uses, _ = graphs.of(integer)
    every = [integer_uses, *(uses for _, uses, _ in sampled)]
    store = TableStore(data_dir / "tables")
    table, failures = _measure(store, target, every, stage, check, measure_seconds)
    notes += failures
    baseline = workdir / "baseline.onnx"
    whole = Plan(input_shape=tuple(compressor.images.shape[1:]), folded=compressor.folded_pairs)
    save_onnx(export_onnx(compressor.folded, whole, target.batch), baseline)
    stage("anchor", "timing the uncompressed network end to end", 0, 0)
    lookup = Rows(table, {})
    anchors = _anchor(compressor, target, integer, sampled[0][1], integer_uses, lookup, baseline)
    for use in (use for graph in every for use in graph):
        lookup.us(use.kernel)
    # A later attempt at the job must price as the first one did.
    pinned = pin("prices", {"anchors": anchors.to_json(), "rows": lookup.used})
    anchors = Anchors(**pinned["anchors"])
    unknown = sorted(lookup.unknown)
    lookup = Rows(table, pinned["rows"])
    graphs_priced = [PricedGraph(policy, uses) for policy, uses, _ in sampled]
    fit = fit_latency(
        network_space, graphs_priced, lambda kernel: 1e3 * anchored(kernel, lookup, anchors)
    )
    sizes = size_model(network_space, [(policy, size) for policy, _, size in sampled])
    macs = macs_model(network_space)
    pricer = Pricer(space, {"latency_ms": fit.model, "size_bytes": sizes, "macs": macs})
    uncompressed = {
        "latency_ms": anchors.latency_ms,
        "size_bytes": float(baseline.stat().st_size),
        "macs": pricer.costs(space.uncompressed())["macs"],
    }
    total = sum(lookup.us(u.kernel) * u.count for u in sampled[0][1])
    modelled = sum(
        lookup.us(u.kernel) * u.count for u in sampled[0][1] if table.lookup(u.kernel) is None
    )
    if unknown:
        notes.append(
            f"{len(unknown)} kernels could neither be measured nor modelled and are priced at zero: "
            + "; ".join(unknown[:5])
        )
    return Prices(
        pricer,
        uncompressed,
        fit,
        table,
        anchors,
        baseline,
        modelled / total if total else 0.0,
        tuple(notes),
    )


class Rows:
    """Microseconds of kernels: pinned ones first, then measured, then modelled.

    Attributes:
        used: key to microseconds of everything asked for.
        unknown: descriptions of kernels nobody can price.
    """

    def __init__(self, table: LatencyTable, pinned: dict[str, float]) -> None:
        self._table = table
        self.used: dict[str, float] = dict(pinned)  # zero where unknown
        self.unknown: set[str] = set()

    def us(self, kernel: Kernel) -> float:
        if kernel.key not in self.used:
            row = self._table.lookup(kernel) or self._table.estimate(kernel)
            if row is None:
                self.unknown.add(kernel.describe())
            self.used[kernel.key] = 0.0 if row is None else row.median_us
        return self.used[kernel.key]


def anchored(kernel: Kernel, rows: Rows, anchors: Anchors) -> float:
    """Milliseconds of a kernel within a network."""
    scale = anchors.integer_ms_per_us if kernel.bits == 8 else anchors.float_ms_per_us
    return rows.us(kernel) * scale


def _measure(
    store: TableStore,
    target: Target,
    graphs: list[list[KernelUse]],
    stage: Stage,
    check: Callable[[], None],
    seconds: float,
) -> tuple[LatencyTable, list[str]]:
    """Times the kernels the table lacks, those used most first."""
    table = store.load(target)
    uses = merge_uses(use for graph in graphs for use in graph)
    missing = {k.key for k in table.missing(use.kernel for use in uses)}
    wanted = [u.kernel for u in sorted(uses, key=lambda u: -u.count) if u.kernel.key in missing]
    if not wanted:
        return table, []
    stopped: list[BaseException] = []

    def stop() -> bool:
        if not stopped:
            try:
                check()
            except Exception as error:
                stopped.append(error)
        return bool(stopped)

    def progress(done: int, total: int) -> None:
        if not stop():
            try:
                stage("measure", "timing kernels", done, total)
            except Exception as error:
                # Raised further down, after what was timed is stored.
                stopped.append(error)

    done = target.measure_kernels(wanted, progress=progress, stop=stop, max_seconds=seconds)
    table = store.add(target, done.rows)  # kept even when the job is being cancelled
    if stopped:
        raise stopped[0]
    notes = []
    if done.failures:
        first = done.failures[0]
        notes.append(
            f"{len(done.failures)} kernels could not be timed alone and are modelled, e.g. "
            f"{first.kernel.describe()}: {first.reason}"
        )
    if done.left:
        notes.append(
            f"{len(done.left)} of {len(wanted)} new kernels, the rarest, were not timed within {seconds:.0f} s "
            "and are modelled from measured ones"
        )
    return table, notes


def _anchor(
    compressor: Compressor,
    target: Target,
    integer: Choices,
    float_uses: list[KernelUse],
    integer_uses: list[KernelUse],
    rows: Rows,
    baseline: Path,
) -> Anchors:
    """Solves for what kernel sums count in whole networks, from one float and one integer network."""
    models = {"uncompressed": baseline}
    int8 = baseline.with_name(".uniform_int8.onnx")
    if integer.integer:
        made = compressor.compress(integer, refit=False, quick=True)
        save_onnx(export_onnx(made.network, made.plan, target.batch), int8)
        models["int8"] = int8
    measured = target.measure(models, seconds=ANCHOR_SECONDS)
    int8.unlink(missing_ok=True)
    latency = measured["uncompressed"].p50_ms
    total = sum(rows.us(u.kernel) * u.count for u in float_uses)
    if total <= 0:
        raise MeasurementError("no kernel of the network could be timed on this target")
    per_us = latency / total
    per_integer_us = per_us
    if "int8" in models:
        of_floats = sum(rows.us(u.kernel) * u.count for u in integer_uses if u.kernel.bits != 8)
        of_integers = sum(rows.us(u.kernel) * u.count for u in integer_uses if u.kernel.bits == 8)
        whole = latency * measured.ratio("int8", "uncompressed")
        if of_integers > 0:
            solved = (whole - per_us * of_floats) / of_integers
            # Outside this range the float part's own error is what is being solved for.
            per_integer_us = float(np.clip(solved, 0.5 * per_us, 2.0 * per_us))
    return Anchors(latency, per_us, per_integer_us)
