"""The published tables are imported with their known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from import_files import flags, layer_tables
from scipy.optimize import Bounds, LinearConstraint, milp

from latency_tables import (
    LayerShape,
    LayerTable,
    RowKey,
    TableError,
    TableStore,
)
from latency_tables.importers import FORMATS, detect, import_file

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "published_tables"
HAQ = "haq/qmobilenetv2_imagenet100_batch16_latency_table.npy"
APQ = "apq/BitFusion_new.b1.dict.json"
HAWQ = "hawq_t4/hawq_v3_ilp_tables.json"


@pytest.fixture(scope="module")
def published() -> Path:
    if not PUBLISHED.is_dir():
        pytest.skip("the published tables are not beside this repository")
    return PUBLISHED


def test_haq(published: Path) -> None:
    (table,) = layer_tables(published / HAQ)
    assert (len(table), len(table.precisions)) == (53, 64)
    assert (table.provenance, table.network, table.batch) == ("simulated", "MobileNetV2", 16)
    assert table.total([(8, 8)] * 53) == 39_624_933
    assert len({tuple(row) for row in table.matrix().tolist()}) == 29
    assert table.quantity().unit == "cycles"


def test_haqs_published_strategy(published: Path) -> None:
    (table,) = layer_tables(published / HAQ)
    strategy = json.loads((published / "haq/strategy_60.json").read_text())["strategy"]
    whole = table.total([(8, 8)] * 53)
    for first, cycles, ratio in [(8, 23_634_821, 0.5965), (7, 23_433_397, 0.5914)]:
        choice = [(w, first if a == -1 else a) for w, a in strategy]
        assert table.total(choice) == cycles
        assert table.total(choice) / whole == pytest.approx(ratio, abs=5e-5)
    with pytest.raises(TableError, match="layer 0 has no W8A-1"):
        table.total([tuple(bits) for bits in strategy])


def test_haqs_repeated_blocks_are_flagged_and_kept(published: Path) -> None:
    messages = flags(published / HAQ)
    (copies,) = messages["copies"]
    assert "24 of 53 rows the same as another (29 are distinct)" in copies
    assert "origin" not in messages


def test_apq(published: Path) -> None:
    (table,) = layer_tables(published / APQ)
    assert (len(table), table.key) == (779, RowKey.SHAPE)
    assert (table.w_bits, table.a_bits) == ((4, 6, 8), (4, 6, 8))
    assert (table.provenance, table.device, table.batch) == ("simulated", "BitFusion", 1)
    shape = LayerShape(96, 456, 14, 1, 1, 0, 1)
    assert table.cost(shape, 4, 4) == 0.062192
    assert table.cost(shape, 4, 4, "energy") == 0.10688197403091196
    assert table.fixed_cost() == pytest.approx(0.295904 + 0.081608)
    assert table.fixed_cost("energy") == pytest.approx(0.5061844841862639 + 0.15180756309769594)


def test_apq_offers_no_4_bit_activations_to_7x7_depthwise_layers(published: Path) -> None:
    (table,) = layer_tables(published / APQ)
    absent = np.isnan(table.matrix())
    assert np.array_equal(absent, np.isnan(table.matrix("energy")))
    rows = {i for i, layer in enumerate(table.layers) if layer.kind == "depthwise 7x7"}
    assert (len(rows), absent.sum()) == (148, 3 * 148)
    assert set(np.flatnonzero(absent.any(axis=1)).tolist()) == rows
    (gaps,) = flags(published / APQ)["gaps"]
    assert "depthwise 7x7 has no W4A4, W6A4, W8A4" in gaps


def test_a_hole_in_apqs_table_is_refused(published: Path, tmp_path: Path) -> None:
    data = json.loads((published / APQ).read_text())
    for key in ("(96, 456, 14, 1, 1, 0, 1)-W6A4", "(1000, 1000, 7, 7, 1, 3, 1000)-W6A8"):
        path = tmp_path / "apq.json"
        path.write_text(json.dumps({k: v for k, v in data.items() if k != key}))
        shape, _, precision = key.rpartition("-")
        with pytest.raises(TableError) as caught:
            import_file(path)
        assert f"row {shape}, {precision}: latency is missing" in str(caught.value)


def test_amcs_logs(published: Path) -> None:
    found = import_file(published / "amc_pixel1_logs", "amc")
    assert (found.format, len(found.tables)) == ("tflite", 4)
    ends = {}
    for name, table in found.tables.items():
        assert isinstance(table, LayerTable)
        assert name == f"amc-{table.network}"
        assert (table.provenance, table.device) == ("measured", "Pixel 1, 1 thread")
        assert (table.batch, table.precisions, len(table.whole)) == (1, ((32, 32),), 3)
        assert table.end_to_end is not None
        ends[table.network] = table.end_to_end
        # The operators' medians add up to the whole, apart from what drifts between runs.
        assert table.total([(32, 32)] * len(table)) == pytest.approx(table.end_to_end, rel=0.015)
    base = ends["mobilenet_v1_1.0_224"]
    speed_ups = {name: round(base / end, 2) for name, end in ends.items()}
    assert speed_ups["mobilenet_v1_0.75_224"] == 1.72
    assert speed_ups["0.5amc_round8"] == 1.81
    assert speed_ups["0.5time_round8"] == 1.97


def test_amcs_operators(published: Path) -> None:
    found = import_file(published / "amc_pixel1_logs", "amc")
    table = found.tables["amc-mobilenet_v1_1.0_224"]
    assert isinstance(table, LayerTable)
    assert len(table) == 31
    layer = table.layers[2]
    assert layer.kind == "CONV_2D"
    assert layer.label == "MobilenetV1/MobilenetV1/Conv2d_1_pointwise/Relu6"
    assert layer.facts["lowest_ms"] <= table.cost(2, 32, 32) <= layer.facts["highest_ms"]
    (drift,) = [flag for flag in found.flags["amc-mobilenet_v1_1.0_224"] if flag.kind == "drift"]
    assert "3.4 %" in drift.message
    (alone,) = layer_tables(published / "amc_pixel1_logs/mobilenet_run1.txt")
    assert alone.cost(2, 32, 32) == 5.974
    assert alone.whole == (123.161,)


@pytest.mark.parametrize(
    ("network", "sensitivity", "narrow", "latency", "widest"),
    [
        ("resnet18", 0.201470, 8, 4.2449, 5.3437),
        ("resnet50", 0.052927, 18, 9.7522, 11.8654),
    ],
)
def test_hawqs_exact_optimum(
    published: Path, network: str, sensitivity: float, narrow: int, latency: float, widest: float
) -> None:
    (table,) = [t for t in layer_tables(published / HAWQ, "t4") if t.network == network]
    assert (table.name, table.provenance, table.device) == (
        f"t4-{network}",
        "measured",
        "NVIDIA T4",
    )
    layers = len(table)
    bound = (table.total([(4, 4)] * layers) + table.total([(8, 8)] * layers)) / 2
    assert table.total([(8, 8)] * layers) == pytest.approx(widest, abs=5e-5)
    # One binary a cell, one chosen a layer: an integer program of 38 and 104 variables.
    one_each = np.kron(np.eye(layers), np.ones(2))
    solved = milp(
        table.matrix("sensitivity").ravel(),
        constraints=[
            LinearConstraint(table.matrix().ravel()[None, :], -np.inf, bound),
            LinearConstraint(one_each, 1, 1),
        ],
        integrality=np.ones(2 * layers),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert solved.success
    picked = np.asarray(solved.x).reshape(layers, 2).argmax(axis=1)
    choice = [table.precisions[column] for column in picked]
    assert choice.count((4, 4)) == narrow
    assert table.total(choice) == pytest.approx(latency, abs=5e-5)
    assert table.total(choice) <= bound
    assert table.total(choice, "sensitivity") == pytest.approx(sensitivity, abs=5e-7)


@pytest.mark.parametrize("path", [HAQ, APQ, HAWQ, "amc_pixel1_logs"])
def test_published_tables_survive_the_store(published: Path, path: str, tmp_path: Path) -> None:
    found, store = import_file(published / path), TableStore(tmp_path)
    assert store.add_imported(found.tables) == tuple(found.tables)
    assert store.list() == tuple(sorted(found.tables))
    for name, table in found.tables.items():
        assert store.get(name) == table
        assert store.get(name).digest == table.digest
    assert store.add_imported(import_file(published / path).tables) == ()


def test_every_published_table_is_of_one_format(published: Path) -> None:
    named = {
        HAQ: "haq",
        APQ: "apq",
        HAWQ: "hawq",
        "amc_pixel1_logs": "tflite",
        "amc_pixel1_logs/0.5time_run1.txt": "tflite",
    }
    assert {path: detect(published / path).name for path in named} == named
    for other in ("haq/strategy_60.json", "README.md"):
        with pytest.raises(TableError) as caught:
            detect(published / other)
        assert all(f"{known.name} (" in str(caught.value) for known in FORMATS)
    with pytest.raises(TableError, match="folder without logs"):
        detect(published / "apq")
