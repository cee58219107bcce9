"""A rank is worth offering where its factors beat the layer beyond the noise, and only where prices are known."""

from __future__ import annotations

import pytest

from latency_tables import Kernel, KernelUse, LatencyTable, Row, parse_target
from latency_tables.kernel import TensorSpec
from search_spaces.pricing import UPPER_90
from service.kernel_rows import Rows
from service.rank_forms import REPEATED, Form, Uses, faster, priceable

TARGET = parse_target("x86-ort")


def product(name: str, outputs: int) -> KernelUse:
    """A product of 64 inputs with so many outputs; ``name`` keeps families apart."""
    specs = [
        TensorSpec("float32", (1, 64), False, None),
        TensorSpec("float32", (64, outputs), True, None),
    ]
    out = TensorSpec("float32", (1, outputs), False, None)
    return KernelUse(Kernel(name, "MatMul", 1, (), tuple(specs), (out,)), "layer", "", 1)


def around(name: str) -> KernelUse:
    spec = TensorSpec("float32", (1, 64), False, None)
    return KernelUse(Kernel(name, "Relu", 1, (), (spec,), (spec,)), "layer", "", 1)


def rows_of(costs: dict[str, float], uses: list[KernelUse], **changes: object) -> Rows:
    """Rows of the kernels whose domain has a cost; the others are unknown."""
    made = []
    for use in uses:
        us = costs.get(use.kernel.domain)
        if us is not None:
            fields: dict[str, object] = {"ci95": (us, us)} | changes
            when = "2026-01-01T00:00:00+00:00"
            made.append(Row(use.kernel, 7, us, us, us, time=when, reference_us=1.0, run_reference_us=1.0, **fields))  # type: ignore[arg-type]  # fmt: skip
    return Rows(LatencyTable.empty(TARGET).with_rows(made), {})


WHOLE, LOW, ENDS = product("whole", 64), product("low", 8), around("ends")
FORMS: dict[Form, Uses] = {(False, None): [WHOLE, ENDS], (False, 8): [LOW, ENDS]}
USES = [WHOLE, LOW, ENDS]


@pytest.mark.parametrize(("low", "offered"), [(5.0, [8]), (9.0, [8]), (9.5, []), (10.5, [])])
def test_a_saving_within_the_noise_of_repeated_timing_is_none(
    low: float, offered: list[int]
) -> None:
    rows = rows_of({"whole": 10.0, "low": low, "ends": 100.0}, USES)
    assert faster(FORMS, rows)[0] == offered
    noise = UPPER_90 * REPEATED * (10.0**2 + low**2) ** 0.5
    assert (10.0 - low > noise) == bool(offered)


def test_wide_intervals_ask_for_more() -> None:
    costs = {"whole": 10.0, "low": 6.0, "ends": 1.0}
    assert faster(FORMS, rows_of(costs, USES))[0] == [8]
    assert faster(FORMS, rows_of(costs, USES, ci95=(0.0, 20.0)))[0] == []


def test_a_simulator_has_no_noise() -> None:
    rows = rows_of({"whole": 10.0, "low": 9.9, "ends": 1.0}, USES, provenance="simulated")
    assert faster(FORMS, rows)[0] == [8]


def test_what_surrounds_the_layer_need_not_be_known() -> None:
    rows = rows_of({"whole": 10.0, "low": 5.0}, USES)
    assert faster(FORMS, rows)[0] == priceable(FORMS, rows)[0] == [8]


def test_factors_that_nobody_can_price_are_named() -> None:
    rows = rows_of({"whole": 10.0, "ends": 1.0}, USES)
    for judge in (faster, priceable):
        ranks, reason = judge(FORMS, rows)
        assert ranks == [] and "low.MatMul" in reason and "Relu" not in reason


def test_a_rank_must_have_a_price_in_every_precision() -> None:
    again = product("integer", 64)
    forms = FORMS | {(True, None): [again], (True, 8): [product("rare", 8)]}
    rows = rows_of({"whole": 10.0, "low": 5.0, "integer": 5.0}, [*USES, again])
    assert priceable(forms, rows)[0] == []
    # In integers the whole layer is as fast as float factors are: nothing is gained.
    assert faster(forms, rows)[0] == []
