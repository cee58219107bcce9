"""``report.html``: one self-contained page that says what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.front_charts import costs_text, front_charts, hypervolume_chart
from service.report_charts import layer_chart, pareto, precision, tone, trial_chart
from service.staircase_charts import staircase_charts, tones
from service.summary import (
    ABSENT,
    REFERENCE_NAMES,
    count,
    file_size,
    latency_text,
    met_text,
    millijoules,
    milliseconds,
    percent,
)

_PAGES = Path(__file__).parent / "pages"
_MOST_POLICIES = 12


def render(report: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> str:
    """The page. It asks for nothing from anywhere: styles and drawings are inside.

    Args:
        report: ``report.json``, with ``layers``, ``budget_limits``, ``left_out``, ``winner``,
            ``not_faster`` and ``notes``. What is missing or null shows as "not measured". The
            winner's trial is found by ``winner_trial`` (its number), or by ``winner`` (its policy's
            digest) together with ``space`` (the space's digest).
        trials: ``TrialRecord`` as dicts, in the order they were told.
    """
    environment = Environment(
        loader=FileSystemLoader(_PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=milliseconds, mj=millijoules, size=file_size, count=count, percent=percent
    )
    limits = report.get("budget_limits") or {}
    stairs = staircase_charts(report.get("staircases") or [], limits.get("latency_ms"))
    winner = winner_number(report, trials)
    chosen = (
        next((t for t in trials if t.get("number") == winner), None) if winner is not None else None
    )
    return environment.get_template("report.html").render(
        report=report,
        title=_title(report),
        outcome=_outcome(report),
        tiles=_tiles(report),
        columns=_columns(report),
        rows=_rows(report, limits),
        targets=[_on_target(entry) for entry in report.get("targets") or []],
        layers=report.get("layers") or [],
        layer_chart=layer_chart(report.get("layers") or []),
        tone=tone,
        precision=precision,
        staircases=stairs,
        staircase_tones=tones(stairs),
        trial_chart=trial_chart(trials, limits.get("latency_ms"), winner),
        trial_counts=_trial_counts(trials),
        front=report.get("front") or [],
        front_charts=front_charts(report),
        hypervolume=report.get("hypervolume") or {},
        hypervolume_costs=costs_text(report.get("hypervolume")),
        hypervolume_chart=hypervolume_chart(report.get("hypervolume")),
        policies=_policies(trials, winner),
        winner=winner,
        decisions=(chosen or {}).get("policy") or {},
        left_out=report.get("left_out") or [],
        notes=report.get("notes") or [],
        provenance=_provenance(report),
    )


def winner_number(report: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> int | None:
    """Number of the trial whose policy was delivered; None when it cannot be told."""
    number = report.get("winner_trial")
    if isinstance(number, int):
        return number
    digest, space = report.get("winner"), report.get("space")
    for trial in trials:
        if digest and trial.get("digest") == digest:
            return _number(trial)
    if not digest or not isinstance(space, str):
        return None
    for trial in trials:
        values = list((trial.get("policy") or {}).values())
        text = json.dumps([1, space, values], separators=(",", ":"))
        if hashlib.sha256(text.encode()).hexdigest()[:12] == digest:
            return _number(trial)
    return None


def _number(trial: Mapping[str, Any]) -> int | None:
    number = trial.get("number")
    return number if isinstance(number, int) else None


def _title(report: Mapping[str, Any]) -> str:
    return str(report.get("name") or f"{_source(report.get('model'))} on {_target_name(report)}")


def _source(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("source") or value.get("name") or "network")
    return str(value or "network")


def _on_target(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table of targets: texts, and whether the budget is met there."""
    drop, compressed = entry["accuracy_drop"], entry["compressed"]
    energy = _get(compressed, "energy_mj", "value")
    predicted = entry["met_by"] == "prediction"
    return {
        "name": entry["name"],
        "kind": str(entry["provenance"]).partition(":")[0],
        "budget": [
            f"{key} \N{LESS-THAN OR EQUAL TO} {value:g}" for key, value in entry["budget"].items()
        ],
        "baseline": latency_text(entry["baseline"]["latency_ms"]),
        "latency": latency_text(compressed["latency_ms"]),
        "p90": "predicted"
        if predicted
        else f"p90 {milliseconds(_get(compressed, 'latency_ms', 'p90'))}",
        "ratio": entry["latency_ratio"],
        "accuracy": percent(compressed["accuracy"]),
        "drop": f"{100 * drop['estimate']:.2f} points lost",
        "energy": None if energy is None else millijoules(energy),
        "size": file_size(compressed["size_bytes"]),
        "file": entry["artifact"],
        "met": entry["met_budget"],
        "met_text": met_text(entry).split(", "),
    }


def _target_name(report: Mapping[str, Any]) -> str:
    if report.get("targets"):
        return ", ".join(str(entry["name"]) for entry in report["targets"])
    target = report.get("target")
    if isinstance(target, Mapping):
        return str(target.get("name") or target.get("spec") or "target")
    return str(target or "target")


def _outcome(report: Mapping[str, Any]) -> dict[str, str]:
    met, front = report.get("met_budget"), report.get("front")
    if front and met:
        within = ", budget met" if report.get("budget") else ""
        return {"tone": "good", "text": f"Front of {len(front)} networks{within}"}
    if met is None:
        return {"tone": "warn", "text": "Budget not checked"}
    by = " by prediction" if report.get("met_by") == "prediction" else ""
    if not met:
        return {"tone": "bad", "text": f"Budget missed{by}"}
    if report.get("not_faster"):
        return {"tone": "warn", "text": f"Budget met{by}"}
    return {"tone": "good", "text": f"Budget met{by}"}


def _get(part: Any, *path: str) -> Any:
    for key in path:
        part = part.get(key) if isinstance(part, Mapping) else None
    return part


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The headline numbers with what they were before."""
    before, after = report.get("baseline"), report.get("compressed")
    tiles = []
    predicted = report.get("met_by") == "prediction"
    latency = ("Latency (predicted)", "predicted_p50") if predicted else ("Latency (p50)", "p50")
    several = len(report.get("targets") or []) > 1
    on = f", {report['targets'][0]['name']}" if several else ""
    known = _get(after, "energy_mj", "value") is not None
    energy = [("Energy, net", ("energy_mj", "value"), millijoules, "less")] if known else []
    for label, path, show, word in (
        (latency[0] + on, ("latency_ms", latency[1]), milliseconds, "faster"),
        *energy,
        ("Accuracy", ("accuracy",), percent, ""),
        ("File size", ("size_bytes",), file_size, "smaller"),
        ("MACs", ("macs",), count, "fewer"),
    ):
        old, new = _get(before, *path), _get(after, *path)
        ratio = _get(report, "latency_ratio", "estimate") if word == "faster" else None
        note = ""
        if ratio:
            note = f"{1 / ratio:.2f}x faster" if ratio <= 1 else f"{ratio:.2f}x slower"
        elif old and new and word:
            opposite = {"faster": "slower", "smaller": "larger"}.get(word, "more")
            note = f"{old / new:.2f}x {word}" if old >= new else f"{new / old:.2f}x {opposite}"
        elif not word and report.get("accuracy_drop"):
            note = _points(report["accuracy_drop"]["estimate"])
        tiles.append({"label": label, "value": show(new), "before": show(old), "note": note})
    return tiles


def _points(drop: float) -> str:
    if round(100 * drop, 2) == 0:
        return "no drop"
    sign = "\N{MINUS SIGN}" if drop > 0 else "+"
    return f"{sign}{abs(100 * drop):.2f} points"


def _columns(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = [
        {"name": "Baseline", "part": report.get("baseline") or {}, "role": "baseline"},
        {"name": "Compressed", "part": report.get("compressed") or {}, "role": "compressed"},
    ]
    for key, part in (report.get("references") or {}).items():
        name = REFERENCE_NAMES.get(key, key.replace("_", " "))
        columns.append(
            {"name": name[:1].upper() + name[1:], "part": part or {}, "role": "reference"}
        )
    return columns


def _rows(report: Mapping[str, Any], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """The comparison table: a label and a cell a column, a bar where a length says more."""
    columns = _columns(report)
    rows: list[dict[str, Any]] = []

    def row(
        label: str,
        cells: list[tuple[str, str]],
        values: list[float | None] | None = None,
        limit: float | None = None,
    ) -> None:
        known = [value for value in [*(values or []), limit] if value is not None]
        most = max(known, default=0.0)
        rows.append(
            {
                "label": label,
                "cells": [
                    {
                        "main": main,
                        "sub": sub,
                        "absent": main in (ABSENT, "not predicted", "not compared"),
                        "share": None
                        if not most or values is None or values[i] is None
                        else 100 * float(values[i] or 0) / most,
                    }
                    for i, (main, sub) in enumerate(cells)
                ],
                "limit": 100 * limit / most if limit is not None and most else None,
            }
        )

    parts = [column["part"] for column in columns]
    row("Accuracy", [_accuracy(part) for part in parts])
    row("Accuracy drop", [_drop(report, column) for column in columns])
    p50 = [_get(part, "latency_ms", "p50") for part in parts]
    # Where nothing was measured the predicted latencies are the ones to compare.
    measured = any(value is not None for value in p50) or report.get("met_by") != "prediction"
    if measured:
        row(
            "Latency, p50",
            [(milliseconds(v), f"p90 {milliseconds(_get(p, 'latency_ms', 'p90'))}" if v else "")
             for v, p in zip(p50, parts, strict=True)],
            p50,
            limits.get("latency_ms"),
        )  # fmt: skip
    predicted = [_get(part, "latency_ms", "predicted_p50") for part in parts]
    row(
        "Latency, predicted",
        [_predicted(v, m) for v, m in zip(predicted, p50, strict=True)],
        None if measured else predicted,
        None if measured else limits.get("latency_ms"),
    )
    for label, key, show in (
        ("File size", "size_bytes", file_size),
        ("Packed size", "packed_bytes", file_size),
        ("MACs", "macs", count),
    ):
        values = [_get(part, key) for part in parts]
        if key != "packed_bytes" or any(value is not None for value in values):
            row(label, [(show(v), "") for v in values], values, limits.get(key))
    energies = [_get(part, "energy_mj", "value") for part in parts]
    row("Energy, net", [_energy(part) for part in parts], energies, limits.get("energy_mj"))
    return rows


def _accuracy(part: Mapping[str, Any]) -> tuple[str, str]:
    interval = part.get("accuracy_ci95")
    sub = f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %" if interval else ""
    return percent(part.get("accuracy")), sub


def _drop(report: Mapping[str, Any], column: Mapping[str, Any]) -> tuple[str, str]:
    if column["role"] == "baseline":
        return "\N{EN DASH}", ""
    drop = column["part"].get("accuracy_drop")
    if drop is None and column["role"] == "compressed":
        drop = report.get("accuracy_drop")
    if not drop:
        return (ABSENT if column["role"] == "compressed" else "not compared"), ""
    low, high = drop["ci95"]
    return (
        f"{100 * drop['estimate']:.2f} points",
        f"{100 * low:.2f} to {100 * high:.2f}, {drop['images']:,} images",
    )


def _predicted(value: float | None, measured: float | None) -> tuple[str, str]:
    if value is None:
        return "not predicted", ""
    if not measured:
        return milliseconds(value), ""
    off = 100 * (measured / value - 1)
    return milliseconds(value), f"measured {off:+.1f} %".replace("-", "\N{MINUS SIGN}")


def _energy(part: Mapping[str, Any]) -> tuple[str, str]:
    value = _get(part, "energy_mj", "value")
    if value is None:
        return ABSENT, ""
    gross, words = (
        _get(part, "energy_mj", "gross"),
        str(_get(part, "energy_mj", "provenance") or ""),
    )
    return millijoules(value), f"{words}, gross {millijoules(gross)}" if gross else words


def _trial_counts(trials: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        "all": len(trials),
        "failed": sum(1 for t in trials if not t.get("evaluation")),
        "cached": sum(1 for t in trials if t.get("cached")),
        "over": sum(1 for t in trials if t.get("evaluation") and t["evaluation"].get("violations")),
    }


def _policies(trials: Sequence[Mapping[str, Any]], winner: int | None) -> list[dict[str, Any]]:
    """The Pareto front, best first, the winner always among them."""
    points = []
    for trial in trials:
        evaluation = trial.get("evaluation")
        if not evaluation or (trial.get("cached") and trial.get("number") != winner):
            continue
        latency = (evaluation.get("costs") or {}).get("latency_ms")
        points.append(
            (float("inf") if latency is None else latency, evaluation["scores"][0], trial)
        )
    best = [trial for _, _, trial in reversed(pareto(points))][:_MOST_POLICIES]
    extra = [t for _, _, t in points if t.get("number") == winner and t not in best]
    return [
        {
            "number": trial.get("number"),
            "score": trial["evaluation"]["scores"][0],
            "interval": trial["evaluation"]["interval"],
            "costs": trial["evaluation"].get("costs") or {},
            "winner": trial.get("number") == winner,
        }
        for trial in (*extra, *best)
    ]


def _provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from, as pairs of words."""
    pairs: list[tuple[str, str]] = []
    for key in ("model", "data", "target", "budget", "agent", "seed", "evaluations"):
        pairs += _flat(key, report.get(key))
    for entry in (report.get("targets") or [])[1:]:
        for key in ("spec", "device_class", "table_digest", "machine", "budget"):
            pairs += _flat(f"{entry['name']} {key}", entry.get(key))
    seconds = report.get("wall_seconds")
    if seconds is not None:
        pairs.append(("wall time", f"{seconds:.0f} s"))
    return pairs + _flat("versions", report.get("versions"))


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    label = name.replace("_", " ")
    if value is None:
        return []
    if isinstance(value, Mapping):
        inner = [(k, v) for k, v in value.items() if v is not None]
        if all(not isinstance(v, Mapping) for _, v in inner):
            return [(label, ", ".join(f"{k} {_word(v)}" for k, v in inner))] if inner else []
        return [pair for k, v in inner for pair in _flat(f"{name} {k}", v)]
    return [(label, _word(value))]


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping) for item in value):
            return f"{len(value)}, listed in report.json"
        return " ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
