"""``tables check``: when a table still holds, and that a busy machine is given another chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from latency_fakes import conv_kernel, made_up_row

from latency_tables import (
    HostFingerprint,
    Kernel,
    KernelFailure,
    KernelMeasurements,
    LatencyTable,
    MeasurementError,
    Row,
    TableError,
    TensorSpec,
    parse_target,
)
from latency_tables.check import Check, check_table, compare
from latency_tables.ort import OrtTarget

WIDTHS = range(8, 48)


def pool(width: int) -> Kernel:
    spec = TensorSpec("uint8", (1, width, 8, 8))
    return Kernel("", "MaxPool", 17, (), (spec,), (spec,))


def table(kernels: Sequence[Kernel] = [conv_kernel(c, c) for c in WIDTHS]) -> LatencyTable:
    rows = [made_up_row(kernel, 2.0 + k) for k, kernel in enumerate(kernels)]
    return LatencyTable.empty(parse_target("x86-ort")).with_rows(rows)


def again(stored: LatencyTable, factors: Sequence[float], width: float = 0.02) -> dict[str, Row]:
    """Rows of a run in which times were multiplied; ``width`` is half of the interval."""
    rows = {}
    for factor, row in zip(np.resize(factors, len(stored)), stored.rows.values()):
        us = row.median_us * float(factor)
        rows[row.kernel.key] = replace(
            row, median_us=us, ci95=(us * (1 - width), us * (1 + width)), time="2027"
        )
    return rows


@pytest.mark.parametrize(
    ("factors", "width", "reasons"),
    [
        ([1.0], 0.02, ()),
        ([0.97, 1.03], 0.02, ()),
        ([1.02], 0.001, ()),  # shifted, but less than matters
        ([1.04], 0.001, ("float kernels take +4.0%",)),
        ([0.9, 1.0, 1.08, 1.18], 0.5, ("half of the rows",)),
        ([1.0, 1.0, 1.3], 0.01, ("32% of the rows",)),
        ([1.0, 1.0, 1.0, 1.0, 1.3], 0.01, ()),  # a fifth of them
        ([1.0, 1.0, 1.12], 0.5, ()),  # within the intervals
        ([1.3], 0.01, ("half of the rows", "float kernels take +30", "100% of the rows")),
    ],
)
def test_the_rule(factors: list[float], width: float, reasons: tuple[str, ...]) -> None:
    stored = table()
    check = Check(compare(stored, [again(stored, factors, width)]))
    assert check.holds == (not reasons)
    found = check.reasons
    assert len(found) == len(reasons)
    assert all(text.startswith(start) for text, start in zip(found, reasons)), found


def test_float_and_integer_rows_are_judged_apart() -> None:
    stored = table([*(conv_kernel(c, c) for c in WIDTHS), *(pool(c) for c in range(1, 9))])
    run = {
        key: row if stored.rows[key].kernel.arithmetic == "float" else moved
        for (key, row), moved in zip(
            again(stored, [1.0]).items(), again(stored, [1.09]).values(), strict=True
        )
    }
    check = Check(compare(stored, [run]))
    (reason,) = check.reasons
    assert reason.startswith("integer kernels take +9.0%")
    assert check.shifts["integer"].rows == 8


def test_differences_are_taken_at_the_stored_reference() -> None:
    stored = table()
    slow = {key: row.at_reference(400.0) for key, row in again(stored, [1.0]).items()}
    assert Check(compare(stored, [slow])).typical == pytest.approx(0)


class Scripted(OrtTarget):
    """``x86-ort`` whose runs are made up: factors on the stored times, one a run."""

    def __init__(
        self, stored: LatencyTable, *runs: float, waited: Sequence[float] = (0.0,) * 9
    ) -> None:
        super().__init__()
        object.__setattr__(self, "stored", stored)
        object.__setattr__(self, "left", list(runs))
        object.__setattr__(self, "busy", list(waited))

    def measure_kernels(self, kernels: Any, *_: Any, **__: Any) -> KernelMeasurements:
        run = again(self.stored, [self.left.pop(0)])  # type: ignore[attr-defined]
        wanted = [run[kernel.key] for kernel in kernels]
        busy = self.busy.pop(0)  # type: ignore[attr-defined]
        return KernelMeasurements(tuple(wanted), (), (), {"float": 200.0}, busy)


@pytest.mark.parametrize(
    ("runs", "holds", "measured"),
    [
        ((1.0, 9.0), True, 1),
        ((1.3, 1.0, 1.0), True, 3),
        ((1.05, 1.0), True, 2),
        ((1.3, 1.3, 1.3, 1.0), False, 3),
        ((1.3, 1.0, 1.3), False, 3),
    ],
)
def test_a_no_is_measured_again(runs: tuple[float, ...], holds: bool, measured: int) -> None:
    stored = table()
    check = check_table(stored, Scripted(stored, *runs), rows=10)
    assert (check.holds, check.runs) == (holds, measured)
    assert len(check.changes) == 10
    assert not check.disturbed
    busy = check_table(stored, Scripted(stored, *runs, waited=[0.2, 0.3, 0.4]), rows=10)
    assert busy.disturbed and busy.waited == 0.2


def test_quiet_runs_count_alone() -> None:
    stored = table()
    check = check_table(stored, Scripted(stored, 1.5, 1.0, waited=[0.2, 0.01]))
    assert (check.holds, check.runs, check.typical) == (True, 2, 0.0)
    check = check_table(stored, Scripted(stored, 1.5, 1.5, 1.0, waited=[0.2, 0.01, 0.2]))
    assert (check.holds, check.runs, check.disturbed) == (False, 3, False)


def test_what_cannot_be_checked() -> None:
    empty = LatencyTable.empty(parse_target("x86-ort"))
    with pytest.raises(TableError, match="no rows"):
        check_table(empty, parse_target("x86-ort"))
    stranger = replace(table(), host=HostFingerprint("Z80", (), 1, "onnxruntime 1.0", "CP/M"))
    with pytest.raises(TableError, match="another machine"):
        check_table(stranger, parse_target("x86-ort"))

    class Broken(OrtTarget):
        def measure_kernels(self, kernels: Any, *_: Any, **__: Any) -> KernelMeasurements:
            failures = tuple(KernelFailure(kernel, "no such operator") for kernel in kernels)
            return KernelMeasurements((), failures, (), {})

    with pytest.raises(MeasurementError, match="20 rows could be measured again: no such operator"):
        check_table(table(), Broken())
