"""Staircases as pictures: real files, told by their names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latency_tables.staircase import Curve, Panel, Point
from service.errors import RequestError
from service.table_plot import colours, draw


def panel(widths: int = 3, *labels: str) -> Panel:
    points = tuple(Point(x, float(x), x - 0.1, x + 0.2) for x in range(1, widths + 1))
    curves = tuple(Curve(label, bits, points) for label, bits in zip(labels or ("fp32",), (32, 8)))
    return Panel("3x3 convolution", "channels", "microseconds", curves)


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_pictures(name: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "deep" / name
    draw([panel(3, "fp32", "int8"), panel(60), panel(2)], "a table", path)
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_a_dense_drawing_has_a_line_to_itself(tmp_path: Path) -> None:
    def size(*panels: Panel) -> tuple[int, int]:
        draw(panels, "a table", tmp_path / "a.png")
        header = (tmp_path / "a.png").read_bytes()[16:24]
        return int.from_bytes(header[:4]), int.from_bytes(header[4:])

    small, wide = panel(3), panel(60)
    assert size(small)[0] < size(wide)[0] == size(small, small)[0]
    assert (
        size(small, small)[1] == size(wide)[1] < size(wide, small)[1] < size(small, wide, small)[1]
    )


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"a\.gif: a picture's name ends in png, svg, pdf"):
        draw([panel()], "", tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RequestError, match="pip install matplotlib"):
        draw([panel()], "", tmp_path / "a.png")


def test_precisions_keep_their_colours() -> None:
    def of(*bits: int) -> list[str]:
        return colours([Curve("", width, ()) for width in bits])

    assert of(32, 8) == [of(32)[0], of(8)[0]]
    assert of(32, 8, 8)[0] == of(32)[0]
    assert len(set(of(32, 16, 8, 8))) == 4
    assert len(set(of(*range(1, 9)))) == 8
