"""Geometry of the report's staircases: one small drawing a decision on channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.report_charts import Tick, tail, ticks, tone
from service.summary import milliseconds

WIDTH, HEIGHT = 300.0, 172.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 36.0
_NAMES = {"fp32": "fp32", "half": "16 bits", "int8": "int8", "low": "fewer than 8 bits"}


@dataclass(frozen=True, slots=True)
class Stair:
    """One line.

    Attributes:
        tone: the precision's, or ``mixed`` where the layers differ.
        path: an SVG path.
        dots: (x, y, text on hovering) of each number of channels.
    """

    tone: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True)
class StaircaseChart:
    """One decision.

    Attributes:
        label: its module path, shortened from the left.
        title: everything, shown on hovering.
        kept, of: channels.
        stairs: the line of what was delivered last, so that it lies on top.
        chosen: place of what was delivered.
        budget: height of the latency budget, None where it is outside of the drawing.
    """

    label: str
    title: str
    kept: int
    of: int
    stairs: tuple[Stair, ...]
    chosen: tuple[float, float]
    budget: float | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    base: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def staircase_charts(
    staircases: Sequence[Mapping[str, Any]], limit_ms: float | None
) -> list[StaircaseChart]:
    """Drawings of ``report["staircases"]``, in their order; entries without numbers are left out.

    Args:
        limit_ms: the latency budget, or None.
    """
    return [_chart(entry, limit_ms) for entry in staircases if len(entry["channels"]) > 1]


def tones(charts: Sequence[StaircaseChart]) -> list[tuple[str, str]]:
    """Class and name of each kind of line that occurs, for the key."""
    used = {stair.tone for chart in charts for stair in chart.stairs}
    names = {**_NAMES, "mixed": "some layers int8, some fp32"}
    return [(name, words) for name, words in names.items() if name in used]


def _chart(entry: Mapping[str, Any], limit_ms: float | None) -> StaircaseChart:
    channels: list[int] = entry["channels"]
    own: list[float] = entry["latency_ms"]
    lines = {tone(int(bits)): values for bits, values in entry["curves"].items()}
    delivered = "mixed" if entry["bits"] is None else tone(entry["bits"])
    # Last, and on top of the others.
    lines.pop(delivered, None)
    lines[delivered] = own
    every: list[float] = [value for values in lines.values() for value in values]
    gap = 0.08 * (max(every) - min(every)) or 0.05 * abs(max(every)) or 1.0
    low: float = max(0.0, min(every) - gap)
    high: float = max(every) + gap

    def x(value: float) -> float:
        return _LEFT + value / float(channels[-1]) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    kept = entry["chosen"]
    inside = limit_ms is not None and low <= limit_ms <= high
    return StaircaseChart(
        label=tail(str(entry["decision"]), 26),
        title="\n".join(
            [f"{entry['decision']}: {kept} of {channels[-1]} channels", *entry["layers"]]
        ),
        kept=kept,
        of=channels[-1],
        stairs=tuple(
            Stair(
                name,
                "M" + "L".join(f"{x(c):.1f},{y(v):.1f}" for c, v in zip(channels, values)),
                tuple(
                    (x(c), y(v), f"{c} channels, {_words(name)}: {milliseconds(v)}")
                    for c, v in zip(channels, values)
                ),
            )
            for name, values in lines.items()
        ),
        chosen=(x(kept), y(own[channels.index(kept)])),
        budget=y(limit_ms) if inside and limit_ms is not None else None,
        x_ticks=tuple(Tick(x(value), f"{value}") for value in _channel_ticks(channels)),
        y_ticks=tuple(Tick(y(value), f"{value:g}") for value in ticks(low, high, 4)),
    )


def _words(name: str) -> str:
    return _NAMES.get(name, "as delivered")


def _channel_ticks(channels: Sequence[int]) -> list[int]:
    """Some of the numbers offered, the smallest and the largest among them."""
    every = math.ceil((len(channels) - 1) / 4)
    # From the top: the uncompressed width is always named.
    return sorted(channels[::-1][::every])
