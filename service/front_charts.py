"""Geometry of a front's drawings: its members as measured, and the hypervolume over evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.quantities import base_quantity, target_of
from service.report_charts import Tick, ticks
from service.summary import REFERENCE_NAMES, count, file_size, millijoules, milliseconds, percent

_WIDTH, _HEIGHT, _RIGHT, _TOP, _BOTTOM = 440.0, 250.0, 14.0, 14.0, 44.0
# Costs are drawn by their logarithm where the largest is more than so many times the smallest.
_WIDE = 4.0
# quantity -> label of its axis, divisor to the label's unit, text of a value
_AXES = {
    "latency_ms": ("latency, ms", 1.0, milliseconds),
    "energy_mj": ("net energy, mJ", 1.0, millijoules),
    "size_bytes": ("file size, kB", 1e3, file_size),
    "packed_bytes": ("packed size, kB", 1e3, file_size),
    "macs": ("MACs, millions", 1e6, count),
}
# Costs that every one of several targets has its own of.
_ON_A_TARGET = ("latency_ms", "energy_mj")


@dataclass(frozen=True, slots=True)
class Mark:
    """A file. ``state`` is ``winner`` (delivered), ``front``, ``inside`` (another one is better in all) or ``over``
    (baseline and references); ``low`` and ``high`` are the ends of its accuracy's interval."""

    x: float
    y: float
    low: float
    high: float
    state: str
    title: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with two axes; ``path`` is a line in it."""

    width: float
    height: float
    left: float
    right: float
    top: float
    base: float
    label: str
    path: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


class _Frame:
    """Places in a drawing; the left margin is as wide as the longest label.

    Args:
        wide: values from left to right go by their logarithm where the largest is many times the smallest.
        percents: values from bottom to top are shares.
    """

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], wide: bool = False, percents: bool = False
    ) -> None:
        self._log = wide and max(xs) > _WIDE * min(xs) > 0
        self._x, self._y = _padded([self._along(x) for x in xs]), _padded(ys)
        labels = {v: f"{100 * v:g} %" if percents else f"{v:g}" for v in ticks(*self._y, 5)}
        self.left = 14.0 + 7.0 * max(map(len, labels.values()), default=0)
        self.x_ticks = tuple(Tick(self.x(v), f"{v:g}") for v in self._values())
        self.y_ticks = tuple(Tick(self.y(v), label) for v, label in labels.items())

    def _along(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def _values(self) -> list[float]:
        """Round values along the bottom."""
        if not self._log:
            return ticks(*self._x, 6)
        low, high = self._x
        powers = range(math.floor(low), math.ceil(high) + 1)
        every = [float(f"{m}e{p}") for p in powers for m in (1, 2, 5)]
        return [v for v in every if low <= math.log10(v) <= high]

    def x(self, value: float) -> float:
        low, high = self._x
        return self.left + (self._along(value) - low) / (high - low) * (_WIDTH - self.left - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    def plot(self, label: str, path: str, marks: Sequence[Mark]) -> Plot:
        return Plot(
            _WIDTH, _HEIGHT, self.left, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM, label, path,
            tuple(marks), self.x_ticks, self.y_ticks,
        )  # fmt: skip


def hypervolume_chart(curve: Mapping[str, Any] | None) -> Plot | None:
    """Hypervolume over evaluations, a staircase; None where nothing was added to a front."""
    steps = (curve or {}).get("over_evaluations") or []
    if curve is None or not steps:
        return None
    end = max(float(curve["evaluations"]), 1.0)
    frame = _Frame([0.0, end], [0.0, float(curve["final"])])
    path = f"M{frame.x(0.0):.1f},{frame.y(0.0):.1f}"
    for number, volume in steps:
        path += f"H{frame.x(float(number)):.1f}V{frame.y(float(volume)):.1f}"
    return frame.plot("evaluations", f"{path}H{frame.x(end):.1f}", ())


def front_charts(report: Mapping[str, Any]) -> list[Plot]:
    """Accuracy against each cost of the front, files as they were measured; empty without a front.

    Args:
        report: ``report.json``.
    """
    front = report.get("front") or []
    quantities = (report.get("hypervolume") or {}).get("quantities") or []
    if not front:
        return []
    plots = []
    for axis in quantities:
        quantity, place = base_quantity(axis), target_of(axis)
        label, unit, show = _AXES[quantity]
        on = _on(report, place)
        others = {"baseline": on.get("baseline"), **(on.get("references") or {})}
        files = [("over", REFERENCE_NAMES.get(k, k), part) for k, part in others.items() if part]
        files += [(_state(line), f"policy {line['policy']}", _on(line, place)) for line in front]
        known = [
            (state, name, part, value)
            for state, name, part in files
            if (value := cost(part, quantity)) is not None and part.get("accuracy") is not None
        ]
        if not known:
            continue
        ends = [part.get("accuracy_ci95") or [part["accuracy"]] * 2 for _, _, part, _ in known]
        frame = _Frame(
            [value / unit for *_, value in known], [v for pair in ends for v in pair], True, True
        )
        marks = [
            Mark(
                frame.x(value / unit),
                frame.y(part["accuracy"]),
                frame.y(low),
                frame.y(high),
                state,
                f"{name}\n{percent(part['accuracy'])} ({percent(low)} to {percent(high)})\n{show(value)}",
            )
            for (state, name, part, value), (low, high) in zip(known, ends, strict=True)
        ]
        if quantity == "latency_ms" and on.get("met_by") == "prediction":
            label = f"predicted {label}"
        if place is None and report.get("targets") and quantity in _ON_A_TARGET:
            place = report["targets"][0]["name"]
        if place is not None:
            label = f"{label}, {place}"
        plots.append(frame.plot(label, "", marks))
    return plots


def costs_text(curve: Mapping[str, Any] | None) -> str:
    """The costs of a hypervolume in words, without their units."""
    known = (curve or {}).get("quantities") or []
    words = [(_AXES[base_quantity(name)][0].split(",")[0], target_of(name)) for name in known]
    return " and ".join(word if place is None else f"{word} on {place}" for word, place in words)


def _on(part: Mapping[str, Any], target: str | None) -> Mapping[str, Any]:
    """A report, or a line of its front, as one of several targets has it."""
    if target is None:
        return part
    return next((own for own in part.get("targets") or () if own["name"] == target), {})


def cost(part: Mapping[str, Any], quantity: str) -> float | None:
    """A measured file's cost; its predicted latency where none was measured."""
    if quantity == "latency_ms":
        latency = part.get("latency_ms") or {}
        value = (
            latency.get("p50") if latency.get("p50") is not None else latency.get("predicted_p50")
        )
    elif quantity == "energy_mj":
        value = (part.get("energy_mj") or {}).get("value")
    else:
        value = part.get(quantity)
    return None if value is None else float(value)


def _state(line: Mapping[str, Any]) -> str:
    if line.get("delivered"):
        return "winner"
    return "front" if line.get("on_front") else "inside"


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    gap = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    # An axis that begins at nothing begins there.
    return (0.0 if low == 0 else low - gap), high + gap
