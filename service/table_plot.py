"""Staircases as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from latency_tables.files import replace_file
from latency_tables.staircase import Curve, Panel
from service.errors import RequestError

# A panel of more widths than this takes a whole line.
_MANY_WIDTHS = 40
# So many lines leave no room for their names beside them.
_MANY_CURVES = 4
FORMATS = ("png", "svg", "pdf")
# The report's colours, by bits.
_COLOURS = {32: "#62728b", 16: "#5568b8", 8: "#0b7575"}
_LOW = ("#94499a", "#c06a2c", "#7a8a1f", "#b03a5b", "#3f78c0", "#8a6d3b", "#4f9d69", "#777777")


def plot_format(path: Path) -> str:
    """What a picture's name ends in.

    Raises:
        RequestError: something else than ``FORMATS``.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise RequestError(f"--plot {path}: a picture's name ends in {', '.join(FORMATS)}")
    return ending


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draws panels side by side into a file, replacing it whole.

    Raises:
        RequestError: an unknown kind of picture, or matplotlib is missing.
        OSError: the file cannot be written.
    """
    ending = plot_format(path)
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MultipleLocator
    except ImportError as error:
        raise RequestError(
            f"--plot needs matplotlib, which is missing ({error}): python3 -m pip install matplotlib"
        ) from error
    places = _places(panels)
    lines = 1 + max(line for line, _ in places)
    broad = len(panels) > 1 or panels[0].widths > _MANY_WIDTHS
    figure = Figure(figsize=(11 if broad else 6, 0.5 + 3.6 * lines), layout="constrained")
    figure.suptitle(title, fontsize=10.5)
    grid = figure.add_gridspec(lines, 2)
    for panel, (line, columns) in zip(panels, places):
        axes = figure.add_subplot(grid[line, columns])
        for curve, colour in zip(panel.curves, colours(panel.curves)):
            axes.errorbar(
                [point.x for point in curve.points],
                [point.y for point in curve.points],
                yerr=[
                    [point.y - point.low for point in curve.points],
                    [point.high - point.y for point in curve.points],
                ],
                label=curve.label or None,
                color=colour,
                linewidth=1.2,
                elinewidth=0.8,
                marker="o",
                markersize=3 if len(curve.points) > 40 else 4,
            )
        axes.set_title(panel.title, fontsize=9.5)
        axes.set_xlabel(panel.x_label, fontsize=9)
        axes.set_ylabel(panel.y_label, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        most = max(point.x for curve in panel.curves for point in curve.points)
        axes.xaxis.set_major_locator(MultipleLocator(_step(most, columns == slice(0, 2))))
        axes.tick_params(labelsize=8)
        axes.grid(color="#e3e7ec", linewidth=0.7)
        axes.set_axisbelow(True)
        if len(panel.curves) > _MANY_CURVES:
            axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        elif any(curve.label for curve in panel.curves):
            axes.legend(fontsize=8, frameon=False, loc="upper left")
    stream = io.BytesIO()
    figure.savefig(stream, format=ending, dpi=144)
    replace_file(path, stream.getvalue())


def _places(panels: Sequence[Panel]) -> list[tuple[int, slice]]:
    """Line and columns of each panel, two a line; one with many widths has a line to itself."""
    places: list[tuple[int, slice]] = []
    line, column = 0, 0
    for panel in panels:
        wide = panel.widths > _MANY_WIDTHS
        if wide and column:
            line, column = line + 1, 0
        places.append((line, slice(0, 2) if wide else slice(column, column + 1)))
        column = 0 if wide or column else 1
        line += column == 0
    if len(panels) == 1:
        return [(0, slice(0, 2))]
    return places


def _step(most: int, wide: bool) -> int:
    """Distance of the ticks: a power of two, which is where staircases step."""
    step = 1
    while most / step > (20 if wide else 9):
        step *= 2
    return step


def colours(curves: Sequence[Curve]) -> list[str]:
    """One colour a curve: that of its precision, or of a row of others where precisions repeat."""
    bits = [curve.bits for curve in curves]
    if len(set(bits)) == len(bits) and all(width in _COLOURS for width in bits):
        return [_COLOURS[width] for width in bits]
    own = [_COLOURS.get(width) if bits.count(width) == 1 else None for width in bits]
    rest = iter(_LOW * (1 + len(curves) // len(_LOW)))
    return [colour or next(rest) for colour in own]
