"""The stage ``finish``: all files of a network in one interleaved run, then the test split, once a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.compete import Entry, file_of
from benchmarks.verify_artifacts import FLOAT, UNIFORM, accuracy_of, drop_of, right
from compressors.training_images import TensorImages
from latency_tables import HostFingerprint, Measurements, parse_target

Hits = Mapping[str, NDArray[np.bool_]]


def finish(folder: Path, test: TensorImages, seconds: float) -> dict[str, Any]:
    """Measures what ``compete`` left.

    Args:
        folder: of the network.
        seconds: of timing, a file.
    """
    entries = Entry.read_all(folder)
    target = parse_target("x86-ort")
    files = {e.name: file_of(folder, e.name) for e in entries}
    times = target.measure(files, seconds=seconds)
    hits = {name: right(target, file, test) for name, file in files.items()}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return {
        "network": folder.name,
        "test_images": len(test),
        "waited": times.waited,
        "time": times.time,
        "rows": rows_of(entries, times, hits, sizes),
        "host": dataclasses.asdict(HostFingerprint.here()),
    }


def rows_of(
    entries: Sequence[Entry], times: Measurements, hits: Hits, sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """One row an entry: its search, its time beside the references, its accuracy, and the paired difference.

    ``gain`` of a row of ours is the share of test images that it classifies rightly less the peer's, on pairs.
    """
    rows = []
    for entry in entries:
        row: dict[str, Any] = {
            **dataclasses.asdict(entry),
            "p50_ms": times[entry.name].p50_ms,
            "of_uniform_int8": times.ratio(entry.name, UNIFORM),
            "of_uniform_int8_ci95": list(times.ratio_ci95(entry.name, UNIFORM)),
            "of_fp32": times.ratio(entry.name, FLOAT),
            "size_bytes": sizes[entry.name],
            **accuracy_of(hits[entry.name]),
            "drop": drop_of(hits[FLOAT], hits[entry.name]),
            "below_uniform_int8": drop_of(hits[UNIFORM], hits[entry.name]),
        }
        if entry.against:
            row["of_peer"] = times.ratio(entry.name, entry.against)
            row["of_peer_ci95"] = list(times.ratio_ci95(entry.name, entry.against))
            row["gain"] = drop_of(hits[entry.name], hits[entry.against])
        rows.append(row)
    return rows


def table(found: Mapping[str, Any]) -> str:
    """A network's rows: references first, then each peer with what Trimtab found in its place."""
    lines = [
        f"{found['network']} ({found['test_images']} test images, waited {100 * found['waited']:.0f} %)",
        "| file | how | evaluations, s of search | of uniform int8's time (95 %) | of fp32's | packed bytes | "
        "test accuracy (95 %) | drop, points (95 %, pairs) | Trimtab less the peer, points (95 %, pairs) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in ordered(found["rows"])]
    return "\n".join(lines)


def ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each of ours behind the peer's rows that it was searched for."""
    found = [row for row in rows if row["group"] == "reference"]
    for row in rows:
        if row["group"] in ("reference", "trimtab"):
            continue
        found.append(row)
        answer = row["facts"].get("answer")
        behind = [
            r for r in rows if r["group"] == row["group"] and r["facts"].get("answer") == answer
        ]
        if behind[-1] is row:
            leads = [r["name"] for r in behind if r["facts"].get("leads")]
            found += [r for r in rows if r["against"] and r["against"] in leads]
    return found


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["of_uniform_int8_ci95"]
    worst, best = (100 * end for end in row["accuracy_ci95"])
    drop, gain = row["drop"], row.get("gain")
    packed = "" if row["packed_bytes"] is None else f"{row['packed_bytes']:,}"
    return (
        f"| {row['name']} | {row['what']} | {_effort(row['facts'])} | "
        f"{row['of_uniform_int8']:.3f} ({low:.3f} to {high:.3f}) | {row['of_fp32']:.3f} | {packed} | "
        f"{100 * row['accuracy']:.2f} ({worst:.2f} to {best:.2f}) % | {_points(drop)} | "
        f"{_points(gain) if gain else ''} |"
    )


def _points(difference: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in difference["ci95"])
    return f"{100 * difference['estimate']:.2f} ({low:.2f} to {high:.2f})"


def _effort(facts: Mapping[str, Any]) -> str:
    seconds = facts.get("seconds")
    if seconds is None:
        return ""
    whole = seconds["all"] if isinstance(seconds, Mapping) else seconds
    threads = facts.get("workers", facts.get("threads", 1))
    beside = f" on {threads} threads" if threads > 1 else ""
    return f"{facts['evaluations']}, {whole:.0f}{beside}"
