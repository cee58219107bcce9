"""A report in a terminal: baseline and compressed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.cli_common import aligned

ABSENT = "not measured"


def side_by_side(report: Mapping[str, Any]) -> str:
    """Baseline, compressed and the references in columns, with the outcome below.

    Args:
        report: ``report.json``.
    """
    references: Mapping[str, Any] = report.get("references") or {}
    columns: dict[str, Mapping[str, Any]] = {
        "baseline": report.get("baseline") or {},
        "compressed": report.get("compressed") or {},
    }
    columns |= {REFERENCE_NAMES.get(k, k): v for k, v in references.items() if v}
    rows = [["", *columns]]
    for label, show in _ROWS.items():
        rows.append([label, *(show(part) for part in columns.values())])
    lines = [aligned(rows, right=range(1, len(rows[0]))), "", outcome(report)]
    targets = report.get("targets") or []
    return "\n".join(lines + target_lines(targets) + front_lines(report.get("front") or []))


def target_lines(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the network takes on each of several targets, after a blank line; nothing where there is one target."""
    if not targets:
        return []
    rows = [["target", "budget", "baseline", "latency", "of baseline", "accuracy", "size", "met"]]
    for entry in targets:
        rows.append(
            [
                str(entry["name"]),
                budget_text(entry["budget"]),
                *(latency_text(entry[side]["latency_ms"]) for side in ("baseline", "compressed")),
                f"{entry['latency_ratio']['estimate']:.3f}",
                percent(entry["compressed"]["accuracy"]),
                file_size(entry["compressed"]["size_bytes"]),
                met_text(entry),
            ]
        )
    return ["", aligned(rows, right=range(2, 7))]


def latency_text(latency: Mapping[str, float | None]) -> str:
    """The measured median, or the predicted one, marked."""
    if latency["p50"] is None:
        return f"~{milliseconds(latency['predicted_p50'])}"
    return milliseconds(latency["p50"])


def budget_text(budget: Mapping[str, float]) -> str:
    """The bounds in a few words."""
    return ", ".join(f"{key} {value:g}" for key, value in budget.items()) or "none"


def met_text(entry: Mapping[str, Any]) -> str:
    """Whether one target's budget is met, or what is over it by how much."""
    over = entry["violations"]
    if over:
        return ", ".join(f"{quantity} over by {100 * by:.1f} %" for quantity, by in over.items())
    return "yes, by prediction" if entry["met_by"] == "prediction" else "yes"


def front_lines(front: Sequence[Mapping[str, Any]]) -> list[str]:
    """The members of a front in a table, after a blank line; nothing without a front."""
    if not front:
        return []
    rows = [
        ["front", "accuracy", "latency", "of baseline", "energy, net", "size", "packed", "file"]
    ]
    for line in front:
        latency = line["latency_ms"]
        rows.append(
            [
                str(line["policy"]),
                percent(line["accuracy"]),
                milliseconds(latency["predicted_p50" if latency["p50"] is None else "p50"]),
                f"{line['latency_ratio']['estimate']:.3f}",
                millijoules((line.get("energy_mj") or {}).get("value")),
                file_size(line["size_bytes"]),
                file_size(line["packed_bytes"]),
                str(line["artifact"]),
            ]
        )
    return ["", aligned(rows, right=range(1, 7))]


REFERENCE_NAMES = {
    "uniform_int8": "uniform int8",
    "uniform_prune_int8": "uniform prune + int8",
    "uniform_prune": "uniform prune",
}


def outcome(report: Mapping[str, Any]) -> str:
    """In one or two sentences: budget met or missed, faster or not, how much accuracy it cost."""
    met = report.get("met_budget")
    budget = budget_text(report.get("budget") or {})
    if report.get("targets"):
        budget = "; ".join(f"{t['name']}: {budget_text(t['budget'])}" for t in report["targets"])
    by = " by prediction, not measured" if report.get("met_by") == "prediction" else ""
    parts = [f"budget ({budget}) {'met' if met else 'missed'}{by}"]
    if report.get("not_faster"):
        parts.append("smaller but not faster")
    ratio = _speed(report)
    if ratio and not report.get("not_faster"):
        parts.append(f"{ratio:.2f}x faster")
    drop = report.get("accuracy_drop")
    if drop:
        low, high = drop["ci95"]
        parts.append(
            f"accuracy drop {100 * drop['estimate']:.2f} points "
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f}, {drop['images']} images)"
        )
    return "; ".join(parts)


def plan_text(plan: Mapping[str, Any]) -> str:
    """The dry run for a person: one line a fact, decisions in a table."""
    lines = []
    decisions = plan.get("decisions") or []
    for key, value in plan.items():
        if key in ("decisions", "targets") or value in (None, [], {}):
            continue
        lines.append(f"{key.replace('_', ' ')}: {_plain(value)}")
    # The first is told above, as the only one would be.
    for entry in (plan.get("targets") or [])[1:]:
        for key in ("smallest", "kernels", "estimated_seconds"):
            lines.append(f"{entry['name']} {key.replace('_', ' ')}: {_plain(entry[key])}")
    if decisions and isinstance(decisions[0], Mapping):
        rows = [["decision", "kind", "values"]]
        for decision in decisions:
            values = decision.get("values") or []
            text = " ".join(str(v) for v in values)
            rows.append([str(decision.get("id", "")), str(decision.get("kind", "")), text])
        lines += ["", aligned(rows)]
    return "\n".join(lines)


def milliseconds(value: float | None) -> str:
    """Three significant digits, in ms."""
    return ABSENT if value is None else f"{_short(value)} ms"


def millijoules(value: float | None) -> str:
    """In mJ, three digits."""
    return ABSENT if value is None else f"{_short(value)} mJ"


def file_size(value: float | None) -> str:
    """In bytes, kB or MB (powers of ten)."""
    if value is None:
        return ABSENT
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{_short(value / factor)} {unit}"
    return f"{value:.0f} B"


def count(value: float | None) -> str:
    """With M or G for millions and thousands of millions."""
    if value is None:
        return ABSENT
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_short(value / factor)} {unit}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    """A fraction of 1 as per cent."""
    return ABSENT if value is None else f"{100 * value:.2f} %"


def _short(value: float) -> str:
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def _speed(report: Mapping[str, Any]) -> float | None:
    """How many times faster; from timings taken side by side where the report has them."""
    ratio = (report.get("latency_ratio") or {}).get("estimate")
    if ratio:
        return float(1 / ratio)
    before, after = _p50(report.get("baseline")), _p50(report.get("compressed"))
    return before / after if before and after else None


def _p50(part: Mapping[str, Any] | None) -> float | None:
    value: float | None = ((part or {}).get("latency_ms") or {}).get("p50")
    return value


def _latency(part: Mapping[str, Any], key: str) -> str:
    return milliseconds((part.get("latency_ms") or {}).get(key))


def _interval(part: Mapping[str, Any]) -> str:
    interval = part.get("accuracy_ci95")
    if not interval:
        return ABSENT
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "accuracy": lambda part: percent(part.get("accuracy")),
    "  95 % interval": _interval,
    "latency p50": lambda part: _latency(part, "p50"),
    "  p90": lambda part: _latency(part, "p90"),
    "  predicted p50": lambda part: _latency(part, "predicted_p50"),
    "energy, net": lambda part: millijoules((part.get("energy_mj") or {}).get("value")),
    "size": lambda part: file_size(part.get("size_bytes")),
    "packed": lambda part: file_size(part.get("packed_bytes")),
    "MACs": lambda part: count(part.get("macs")),
}


def _plain(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
