"""Geometry of the report's two drawings: layers, and trials. Numbers only; the page draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.summary import count, file_size, milliseconds


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, in drawing units."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One layer: channels before (outline) and after (filled).

    Attributes:
        x, width: place in drawing units.
        y, height: of the outline, channels before.
        kept_y, kept_height: of the filled part, channels after.
        tone: ``fp32``, ``int8``, ``low`` (fewer bits) or ``half`` (16 bits).
        label: module path, shortened from the left.
        title: everything, shown on hovering.
        dropped: its residual block is left out.
    """

    x: float
    width: float
    y: float
    height: float
    kept_y: float
    kept_height: float
    tone: str
    label: str
    title: str
    dropped: bool


@dataclass(frozen=True, slots=True)
class LayerChart:
    width: float
    height: float
    left: float
    base: float
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    root_scale: bool
    tones: tuple[str, ...]
    any_dropped: bool


@dataclass(frozen=True, slots=True)
class Dot:
    """One trial. ``state`` is ``front``, ``inside``, ``over`` (budget missed) or ``winner``.

    ``below``: its score lies under the drawing, which would be squashed by it.
    """

    x: float
    y: float
    state: str
    title: str
    below: bool = False


@dataclass(frozen=True, slots=True)
class TrialChart:
    """``front`` is the corner points of the Pareto staircase, as an SVG path."""

    width: float
    height: float
    left: float
    right: float
    top: float
    base: float
    dots: tuple[Dot, ...]
    front: str
    budget: Tick | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def layer_chart(layers: Sequence[Mapping[str, Any]]) -> LayerChart | None:
    """Bars over the layers in the order they run; None without layers.

    Heights grow with the square root of the channels where the widest layer has more than eight
    times those of the narrowest, or narrow layers could not be told apart.
    """
    shown = [layer for layer in layers if layer.get("channels")]
    if not shown:
        return None
    sizes = [float(layer["channels"]) for layer in shown]
    root = max(sizes) > 8 * min(sizes)
    left, top, tall, labels = 44.0, 12.0, 190.0, 112.0
    pitch = min(84.0, max(13.0, 900.0 / len(shown)))
    base = top + tall

    def high(channels: float) -> float:
        share = channels / max(sizes)
        return tall * (math.sqrt(share) if root else share)

    bars = []
    for index, layer in enumerate(shown):
        dropped = bool(layer.get("dropped"))
        kept = 0.0 if dropped else float(layer.get("channels_kept") or 0)
        bars.append(
            Bar(
                x=left + index * pitch + 0.12 * pitch,
                width=0.76 * pitch,
                y=base - high(sizes[index]),
                height=high(sizes[index]),
                kept_y=base - high(kept),
                kept_height=high(kept),
                tone=tone(layer.get("bits")),
                label=tail(str(layer.get("path", "")), 17),
                title=_layer_title(layer, dropped),
                dropped=dropped,
            )
        )
    ticks = tuple(
        Tick(base - high(value), f"{value:g}") for value in _channel_ticks(max(sizes), root)
    )
    return LayerChart(
        width=left + len(shown) * pitch + 8,
        height=base + labels,
        left=left,
        base=base,
        bars=tuple(bars),
        ticks=ticks,
        root_scale=root,
        tones=tuple(t for t in ("fp32", "half", "int8", "low") if _has(bars, t)),
        any_dropped=any(bar.dropped for bar in bars),
    )


def tone(bits: Any) -> str:
    """The colour class of a precision."""
    if bits is None or bits >= 32:
        return "fp32"
    if bits >= 16:
        return "half"
    return "int8" if bits == 8 else "low"


def trial_chart(
    trials: Sequence[Mapping[str, Any]], limit_ms: float | None, winner: int | None
) -> TrialChart | None:
    """Search score against predicted latency; None when no trial has both.

    Args:
        trials: ``TrialRecord`` as dicts; failures and answers from the cache are not drawn.
        limit_ms: the latency budget, or None.
        winner: number of the trial that was delivered.
    """
    points = []
    for trial in trials:
        evaluation = trial.get("evaluation")
        if not evaluation or (trial.get("cached") and trial.get("number") != winner):
            continue
        latency = (evaluation.get("costs") or {}).get("latency_ms")
        score = evaluation["scores"][0]
        if latency is not None and math.isfinite(latency) and math.isfinite(score):
            points.append((float(latency), float(score), trial))
    if not points:
        return None
    width, height, right, top, bottom = 900.0, 380.0, 20.0, 22.0, 48.0
    xs = [p[0] for p in points] + ([limit_ms] if limit_ms is not None else [])
    front = pareto(points)
    floor = _floor([p[1] for p in points], [p[1] for p in front])
    ys = [p[1] for p in points if p[1] >= floor]
    x_low, x_high = _padded(min(xs), max(xs))
    y_low, y_high = _padded(min(ys), max(ys))
    y_labels = {v: f"{v:g}".replace("-", "\N{MINUS SIGN}") for v in ticks(y_low, y_high, 6)}
    # Room for the longest label beside the axis' name.
    left = max(64.0, 30.0 + 7.0 * max(map(len, y_labels.values()), default=0))

    def x(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (width - left - right)

    def y(value: float) -> float:
        share = max(0.0, (value - y_low) / (y_high - y_low))
        return height - bottom - share * (height - bottom - top)

    numbers = {trial.get("number") for _, _, trial in front}
    order = {"over": 0, "inside": 1, "front": 2, "winner": 3}
    dots = sorted(
        (
            Dot(x(a), y(b), _state(t, numbers, winner), _trial_title(t), below=b < floor)
            for a, b, t in points
        ),
        key=lambda dot: order[dot.state],
    )
    path = ""
    for index, (a, b, _) in enumerate(front):
        path += f"M{x(a):.1f},{y(b):.1f}" if not index else f"H{x(a):.1f}V{y(b):.1f}"
    return TrialChart(
        width,
        height,
        left,
        width - right,
        top,
        height - bottom,
        tuple(dots),
        path,
        None if limit_ms is None else Tick(x(limit_ms), f"budget {milliseconds(limit_ms)}"),
        tuple(Tick(x(v), f"{v:g}") for v in ticks(x_low, x_high, 8)),
        tuple(Tick(y(v), label) for v, label in y_labels.items()),
    )


def pareto(
    points: Sequence[tuple[float, float, Mapping[str, Any]]],
) -> list[tuple[float, float, Mapping[str, Any]]]:
    """Points within the budget that no other beats in both coordinates, fastest first."""
    front: list[tuple[float, float, Mapping[str, Any]]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if point[2]["evaluation"].get("violations"):
            continue
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from ``low`` to ``high``, at most ``most`` of them."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _floor(scores: Sequence[float], front: Sequence[float]) -> float:
    """Lowest score drawn in place: outliers below (Tukey's fences) are not; the front is."""
    ordered = sorted(scores)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    return min([low - 1.5 * (high - low), *front])


def _padded(low: float, high: float) -> tuple[float, float]:
    gap = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - gap, high + gap


def _channel_ticks(largest: float, root: bool) -> list[float]:
    if not root:
        return [value for value in ticks(0, largest, 5) if value > 0]
    values = [float(2**power) for power in range(2, 15) if 2**power <= largest]
    return [v for v in values if v >= largest / 64][::-2][::-1]


def _has(bars: Sequence[Bar], wanted: str) -> bool:
    return any(bar.tone == wanted and not bar.dropped for bar in bars)


def precision(layer: Mapping[str, Any]) -> str:
    """What a layer runs in, for a reader: of bits that it chose, weights' and activations'."""
    bits, reads = layer.get("bits"), layer.get("activation_bits")
    if bits is None or bits >= 32:
        return "fp32"
    if bits < 8 and reads is not None:
        return f"weights {layer.get('weight_bits') or 8}, activations {reads} bits"
    return "int8" if bits == 8 else f"{bits} bits"


def tail(path: str, length: int) -> str:
    """A path shortened from the left."""
    return path if len(path) <= length else "\N{HORIZONTAL ELLIPSIS}" + path[-(length - 1) :]


def _layer_title(layer: Mapping[str, Any], dropped: bool) -> str:
    parts = [f"{layer.get('path')} ({layer.get('kind')})"]
    if dropped:
        parts.append(f"left out with its block; had {layer['channels']} channels")
    else:
        parts.append(f"{layer.get('channels_kept')} of {layer['channels']} channels")
        parts.append(precision(layer))
    if layer.get("macs") is not None:
        kept = 0 if dropped else layer.get("macs_kept")
        parts.append(f"MACs {count(kept)} of {count(layer['macs'])}")
    return "\n".join(parts)


def _state(trial: Mapping[str, Any], front: set[Any], winner: int | None) -> str:
    if winner is not None and trial.get("number") == winner:
        return "winner"
    if trial["evaluation"].get("violations"):
        return "over"
    return "front" if trial.get("number") in front else "inside"


def _trial_title(trial: Mapping[str, Any]) -> str:
    evaluation = trial["evaluation"]
    costs = evaluation.get("costs") or {}
    low, high = evaluation["interval"]
    lines = [
        f"trial {trial.get('number')}",
        f"search score {evaluation['scores'][0]:.4f} (95 % {low:.4f} to {high:.4f})",
        f"predicted {milliseconds(costs.get('latency_ms'))}",
        f"{file_size(costs.get('size_bytes'))}, {count(costs.get('macs'))} MACs",
    ]
    over = evaluation.get("violations") or {}
    lines += [f"{name} over its budget by {100 * by:.1f} %" for name, by in over.items()]
    return "\n".join(lines)
