"""Logs of TensorFlow Lite's benchmark tool, as AMC publishes them: measured times of every operator.

He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices" (arXiv
1802.03494), timed four networks in three runs each. A folder of logs gives one table a network: its
rows are the operators with the median over the runs, its end-to-end times are kept run by run. The
logs come from ``benchmark_model --enable_op_profiling=true``.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

from latency_tables.errors import TableError
from latency_tables.importers.content import Content, Format
from latency_tables.importers.flags import many
from latency_tables.importers.published import origin_of, source_text
from latency_tables.layer import Layer, Quantity
from latency_tables.layer_table import Flag, LayerTable, RowKey
from latency_tables.table_file import AnyTable

_MARK = b"Run Order"
_GRAPH = re.compile(r"Graph: \[(.*)\]")
_TYPES = re.compile(r"Input types: \[(\w*)")
_SHAPES = re.compile(r"Input shapes: \[(\d+)")
_THREADS = re.compile(r"Num threads: \[(\d+)\]")
_NODES = re.compile(r"Number of nodes executed: (\d+)")
_NUMBER = r"([-+0-9.einfaEINFA]+)"
# The older and the newer spelling of the mean over the timed inferences.
_WHOLE = re.compile(rf"(?:no stats|Inference \(avg\)): {_NUMBER}")
_BITS = {"float": 32, "": 32, "uint8": 8, "int8": 8}
_MAX_OPS = 20_000
# Runs of one network that differ by more than this are worth a word.
_DRIFT = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """One log.

    Attributes:
        file: the log's name.
        network: the graph's file name without its ending.
        ops: (operator, name) in run order, names made unique.
        times_ms: mean over the run's inferences, one an operator.
        starts_ms: when each began, () where the log does not say.
        executed: how many operators ran, None where the log does not say.
        whole_ms: mean end-to-end time of an inference, without profiling.
        bits, batch, threads: of the run; batch and threads None where the log does not say.
    """

    file: str
    network: str
    ops: tuple[tuple[str, str], ...]
    times_ms: tuple[float, ...]
    starts_ms: tuple[float, ...]
    executed: int | None
    whole_ms: float
    bits: int
    batch: int | None
    threads: int | None


def recognises(content: Content) -> bool:
    return any(_MARK in data and b"[node type]" in data for _, data in content.files)


def read(content: Content) -> list[AnyTable]:
    """One table a network.

    Raises:
        TableError: a log without its operators or end-to-end time, an operator that is cut off,
            missing or negative, runs of one network that differ in operators.
    """
    groups: dict[str, list[tuple[Run, tuple[str, bytes]]]] = {}
    for name, data in content.files:
        run = read_run(name, data)
        groups.setdefault(run.network, []).append((run, (name, data)))
    return [
        _table(Content(content.path, tuple(file for _, file in group)), [run for run, _ in group])
        for group in groups.values()
    ]


def read_run(name: str, data: bytes) -> Run:
    """Reads one log; ``name`` is what errors call it."""
    if _MARK not in data or b"[node type]" not in data:
        raise TableError(
            f"{name} is no benchmark log with operators (no 'Run Order' table); run TensorFlow "
            "Lite's benchmark tool with --enable_op_profiling=true"
        )
    text = data.decode("utf-8", errors="replace")
    graph, whole, types = _GRAPH.search(text), _WHOLE.findall(text), _TYPES.search(text)
    if graph is None or not whole:
        what = "the graph's name" if graph is None else "the average inference time"
        raise TableError(f"{name} does not say {what}; give the whole log")
    kind = types[1] if types else ""
    if kind not in _BITS:
        raise TableError(f"{name}: unknown input type {kind!r}; known: float, uint8, int8")
    ops, times, starts = _operators(name, text)
    shapes, threads, executed = (pattern.search(text) for pattern in (_SHAPES, _THREADS, _NODES))
    return Run(
        file=name,
        network=PurePosixPath(graph[1]).name.removesuffix(".tflite") or "network",
        ops=ops,
        times_ms=times,
        starts_ms=starts,
        executed=int(executed[1]) if executed else None,
        whole_ms=_time(whole[-1], f"{name}: the average inference time") / 1000,
        bits=_BITS[kind],
        batch=int(shapes[1]) if shapes else None,
        threads=int(threads[1]) if threads else None,
    )


def _operators(
    name: str, text: str
) -> tuple[tuple[tuple[str, str], ...], tuple[float, ...], tuple[float, ...]]:
    """Operators in run order, their mean times and when they began, ms."""
    lines = iter(text.splitlines())
    for line in lines:
        if "Run Order" in line:
            break
    header = _columns(next(lines, ""))
    if "[node type]" not in header or "[avg ms]" not in header or "[Name]" not in header:
        raise TableError(f"{name}: the 'Run Order' table has no columns [avg ms] and [Name]")
    cell, label = header.index("[avg ms]"), header.index("[Name]")
    start = header.index("[start]") if "[start]" in header else None
    ops: list[tuple[str, str]] = []
    times: list[float] = []
    starts: list[float] = []
    seen: dict[str, int] = {}
    for line in lines:
        row = _columns(line)
        if not row:
            break
        if len(row) != len(header):
            raise TableError(f"{name}: operator {len(ops)} is cut off: {' '.join(row)[:80]}")
        title = row[label].removeprefix("[").removesuffix("]")
        seen[title] = seen.get(title, 0) + 1
        title += f" ({seen[title]})" if seen[title] > 1 else ""
        what = f"{name}: operator {len(ops)}, {title}"
        times.append(_time(row[cell], what))
        if start is not None:
            starts.append(_time(row[start], f"{what}, start"))
        ops.append((row[0], title))
        if len(ops) > _MAX_OPS:
            raise TableError(f"{name} has more than {_MAX_OPS} operators")
    if not ops:
        raise TableError(f"{name}: the 'Run Order' table is empty")
    return tuple(ops), tuple(times), tuple(starts)


def _require_all(run: Run) -> None:
    """Raises when fewer operators are listed than ran; the longest silence says where they were."""
    if run.executed in (None, len(run.ops)):
        return
    where = f"after {run.ops[-1][1]}"
    ends = [0.0, *(start + time for start, time in zip(run.starts_ms, run.times_ms))]
    gaps = [start - end for start, end in zip(run.starts_ms, ends)]
    # Starts and times are rounded to 1 us each, so less than 3 us is no silence.
    if gaps and max(gaps) >= 0.003:
        i = gaps.index(max(gaps))
        before = run.ops[i - 1][1] if i else "the start"
        where = f"between {before} and {run.ops[i][1]}"
    raise TableError(
        f"{run.file}: {run.executed} operators ran and {len(run.ops)} are listed; what is missing "
        f"seems to be {where}"
    )


def _columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t") if cell.strip()]


def _time(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise TableError(f"{what}: {text!r} is no time") from None
    if not math.isfinite(value):
        raise TableError(f"{what} is missing ({text})")
    if value < 0:
        raise TableError(f"{what} is {value:g} (negative)")
    return value


def _table(content: Content, runs: Sequence[Run]) -> LayerTable:
    """The table of one network from its runs."""
    first = runs[0]
    for run in runs[1:]:
        _require_same(first, run)
    for run in runs:
        _require_all(run)
    times = list(zip(*(run.times_ms for run in runs)))
    origin = origin_of(content)
    threads = "" if first.threads is None else f", {first.threads} thread"
    threads += "s" if (first.threads or 1) > 1 else ""
    return LayerTable(
        name=first.network,
        key=RowKey.LAYER,
        layers=tuple(
            Layer(
                title,
                operator,
                facts=MappingProxyType(
                    {"runs": len(runs), "lowest_ms": min(samples), "highest_ms": max(samples)}
                ),
            )
            for (operator, title), samples in zip(first.ops, times)
        ),
        precisions=((first.bits, first.bits),),
        quantities=(
            Quantity(
                "latency", "ms", tuple((float(statistics.median(samples)),) for samples in times)
            ),
        ),
        # The log is the measuring tool's own output, whoever took it.
        provenance="measured",
        source=source_text(FORMAT.name, content, origin),
        sha256=content.sha256,
        device=f"{origin.device}{threads}",
        network=first.network,
        batch=first.batch,
        whole=tuple(run.whole_ms for run in runs),
        flags=(*_origin(origin.source), *_copied_runs(content), *_drift(runs)),
    )


def _require_same(first: Run, run: Run) -> None:
    """Runs of one network must be of the same operators, precision, batch and threads."""
    if run.ops != first.ops:
        lacks = [title for op, title in first.ops if (op, title) not in run.ops]
        adds = [title for op, title in run.ops if (op, title) not in first.ops]
        what = (
            f"operator {lacks[0]} is missing there" if lacks else
            f"operator {adds[0]} is missing in the former" if adds else
            "the operators ran in another order"
        )  # fmt: skip
        raise TableError(f"{first.file} and {run.file} are both of {first.network}: {what}")
    for name in ("bits", "batch", "threads"):
        if getattr(run, name) != getattr(first, name):
            raise TableError(
                f"{first.file} and {run.file} are both of {first.network}, but with {name} "
                f"{getattr(first, name)} and {getattr(run, name)}; import them apart"
            )


def _origin(published: str) -> tuple[Flag, ...]:
    if published:
        return ()
    return (Flag("origin", "the log does not say on which device it was taken", 1),)


def _copied_runs(content: Content) -> tuple[Flag, ...]:
    """Logs that are byte for byte another run's."""
    first: dict[bytes, str] = {}
    copies = []
    for name, data in content.files:
        if data in first:
            copies.append(f"{name} = {first[data]}")
        first.setdefault(data, name)
    if not copies:
        return ()
    message = f"{many(len(copies), 'log')} the same as another run's: {', '.join(copies[:3])}"
    return (Flag("copied runs", message, len(copies), tuple(copies[:50])),)


def _drift(runs: Sequence[Run]) -> tuple[Flag, ...]:
    """End-to-end times that differ from run to run."""
    whole = [run.whole_ms for run in runs]
    spread = (max(whole) - min(whole)) / statistics.fmean(whole) if max(whole) > 0 else 0.0
    if spread <= _DRIFT:
        return ()
    message = (
        f"the runs' end-to-end times differ by {100 * spread:.1f} %: "
        f"{', '.join(f'{run.file} {run.whole_ms:.2f} ms' for run in runs[:5])}"
    )
    return (Flag("drift", message, len(runs), tuple(run.file for run in runs[:50])),)


FORMAT = Format(
    "tflite",
    "logs of TensorFlow Lite's benchmark tool with operator profiling, a file or a folder of them",
    recognises,
    read,
)
