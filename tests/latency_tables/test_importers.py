"""Importers: the published tables and their known answers; what is refused and what is flagged."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latency_fakes import conv_kernel, made_up_row
from scipy.optimize import Bounds, LinearConstraint, milp

from latency_tables import (
    HostFingerprint,
    Kernel,
    LatencyTable,
    LayerShape,
    LayerTable,
    Row,
    RowKey,
    TableError,
    TableStore,
    TensorSpec,
    parse_target,
)
from latency_tables.importers import FORMATS, detect, import_file
from latency_tables.importers import content as contents
from latency_tables.store import default_name

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "published_tables"
HAQ = "haq/qmobilenetv2_imagenet100_batch16_latency_table.npy"
APQ = "apq/BitFusion_new.b1.dict.json"
HAWQ = "hawq_t4/hawq_v3_ilp_tables.json"
OTHER = HostFingerprint("Z80", (), 1, "onnxruntime 1.0", "CP/M")


@pytest.fixture(scope="module")
def published() -> Path:
    if not PUBLISHED.is_dir():
        pytest.skip("the published tables are not beside this repository")
    return PUBLISHED


def layer_tables(path: Path, name: str | None = None) -> list[LayerTable]:
    """A file's tables, all of them of layers."""
    tables = list(import_file(path, name).tables.values())
    assert all(isinstance(table, LayerTable) for table in tables)
    return [table for table in tables if isinstance(table, LayerTable)]


def flags(path: Path) -> dict[str, list[str]]:
    """Messages by kind, of a file with one table."""
    (found,) = import_file(path).flags.values()
    kinds: dict[str, list[str]] = {}
    for flag in found:
        kinds.setdefault(flag.kind, []).append(flag.message)
    return kinds


# The published tables


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


# HAQ's format


def haq_array(layers: int = 3) -> np.ndarray[Any, Any]:
    bits = np.arange(1, 9)
    slices = [100 * (i + 1) * bits[:, None] + 10 * bits[None, :] for i in range(layers)]
    return np.stack(slices).astype(np.float64)


def saved(array: Any, path: Path) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def test_a_table_that_nobody_published(tmp_path: Path) -> None:
    path = saved(haq_array(), tmp_path / "my board.npy")
    found = import_file(path)
    (table,) = layer_tables(path)
    assert list(found.tables) == ["my-board"] == [table.name]
    assert (table.provenance, table.device, table.network) == ("imported", "unknown device", None)
    assert table.cost(1, 3, 5) == 650
    assert list(flags(path)) == ["origin"]


@pytest.mark.parametrize(
    ("value", "words"),
    [(-3.0, "is -3 (negative)"), (math.nan, "is missing"), (math.inf, "is inf")],
)
def test_haq_bad_cells(value: float, words: str, tmp_path: Path) -> None:
    array = haq_array()
    array[2, 0, 6] = value
    with pytest.raises(TableError) as caught:
        import_file(saved(array, tmp_path / "t.npy"))
    assert f"t.npy (haq): row layer 2, W1A7: latency {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[[{"a": 1}]]], dtype=object), "Python objects"),
        (np.zeros((3, 8)), "shape"),
        (np.zeros((0, 8, 8)), "shape"),
        (np.zeros((2, 40, 40)), "shape"),
        (np.zeros((2, 2, 2), dtype=complex), "real numbers"),
        (np.zeros((2, 2, 2), dtype="datetime64[s]"), "real numbers"),
        (np.zeros((2, 2, 2), dtype=bool), "real numbers"),
        (np.zeros((2, 2, 2), dtype=[("a", "<f8")]), "real numbers"),
    ],
)
def test_arrays_that_are_no_table(array: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=words):
        import_file(saved(array, tmp_path / "t.npy"))


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": (4096, 32, 32)}
    )
    path = tmp_path / "t.npy"
    for tail in (b"", b"\0" * 64):
        path.write_bytes(stream.getvalue() + tail)
        with pytest.raises(TableError, match="cut off"):
            import_file(path)
    unclosed = b"{'descr': '<f8', 'shape': (1, 1,  \n"
    for broken in (
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x09abc",
        b"\x93NUMPY\x01\x00\x08\x00{'a': 1}",
        b"\x93NUMPY\x01\x00" + bytes([len(unclosed), 0]) + unclosed,
    ):
        path.write_bytes(broken)
        with pytest.raises(TableError, match=r"whole \.npy"):
            import_file(path)


def test_copies_and_steps_are_flagged(tmp_path: Path) -> None:
    array = haq_array()
    array[1] = array[0]
    array[2, 4, 4] = 1.0
    messages = flags(saved(array, tmp_path / "t.npy"))
    assert messages["copies"] == [
        "1 of 3 rows the same as another (2 are distinct), which is right for repeated blocks and "
        "plateaus only: layer 1 = layer 0"
    ]
    (steps,) = messages["not monotone"]
    assert steps.startswith("2 steps to more bits cheaper (latency, cycles)")
    assert "layer 2 W4A5 1250, W5A5 1" in steps and "layer 2 W5A4 1540, W5A5 1" in steps
    array[2, 4, 4] = 0.0
    assert flags(saved(array, tmp_path / "t.npy"))["zeros"] == [
        "1 cell of latency at 0: layer 2 at W5A5"
    ]


# APQ's format


def apq_document() -> dict[str, Any]:
    """Dense and depthwise shapes of growing width, the cost growing with channels and bits."""
    document: dict[str, Any] = {"head": {"latency": 0.25, "energy": 0.5}}
    shapes = [(16, c, 28, 1, 1, 0, 1) for c in (32, 40, 48)]
    shapes += [(c, c, 28, 3, 1, 1, c) for c in (32, 40, 48)]
    for shape in shapes:
        for w in (4, 8):
            for a in (4, 8):
                cost = 1e-3 * shape[0] * (shape[1] + w + a / 2)
                document[f"{shape}-W{w}A{a}"] = {"latency": cost, "energy": 2 * cost}
    return document


def written(document: Any, path: Path) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_apq_format(tmp_path: Path) -> None:
    path = written(apq_document(), tmp_path / "t.json")
    (table,) = layer_tables(path)
    assert (len(table), len(table.precisions)) == (6, 4)
    assert [layer.kind for layer in table.layers] == ["convolution 1x1"] * 3 + ["depthwise 3x3"] * 3
    assert list(flags(path)) == ["origin"]
    assert table.provenance == "imported"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"latency": -1, "energy": 1}, "W8A4: latency is -1 (negative)"),
        ({"latency": None, "energy": 1}, "W8A4: latency is missing"),
        ({"latency": 1}, "W8A4: energy is missing"),
        ({"latency": math.nan, "energy": 1}, "W8A4: latency is missing"),
        ({"latency": math.inf, "energy": 1}, "W8A4: latency is inf"),
        ({"latency": "1", "energy": 1}, "latency is '1', not a number"),
        ({"latency": True, "energy": 1}, "latency is True, not a number"),
        ({"latency": 1, "energy": 1, "power": 1}, "unknown power"),
        (7, "JSON object"),
    ],
)
def test_apq_bad_rows(entry: Any, words: str, tmp_path: Path) -> None:
    document = apq_document() | {"(16, 40, 28, 1, 1, 0, 1)-W8A4": entry}
    with pytest.raises(TableError) as caught:
        import_file(written(document, tmp_path / "t.json"))
    assert words in str(caught.value)
    assert "row (16, 40, 28, 1, 1, 0, 1)" in str(caught.value)


@pytest.mark.parametrize("key", ["(16, 40, 28, 1, 1, 0)-W8A4", "body", "(16, 40)"])
def test_apq_unknown_keys(key: str, tmp_path: Path) -> None:
    document = apq_document() | {key: {"latency": 1, "energy": 1}}
    with pytest.raises(TableError) as caught:
        import_file(written(document, tmp_path / "t.json"))
    assert repr(key) in str(caught.value)


def test_a_row_given_twice(tmp_path: Path) -> None:
    text = json.dumps(apq_document())
    key = "(16, 40, 28, 1, 1, 0, 1)-W8A4"
    path = tmp_path / "t.json"
    path.write_text(text[:-1] + f', "{key}": {{"latency": 1, "energy": 1}}}}')
    with pytest.raises(TableError, match="given twice") as caught:
        import_file(path)
    assert key in str(caught.value)
    spaced = key.replace(", ", ",")
    path.write_text(text[:-1] + f', "{spaced}": {{"latency": 1, "energy": 1}}}}')
    with pytest.raises(TableError, match="given twice"):
        import_file(path)


def test_steps_in_channels_are_flagged(tmp_path: Path) -> None:
    document = apq_document()
    document["(16, 48, 28, 1, 1, 0, 1)-W4A4"]["latency"] = 0.7
    for key, entry in document.items():
        if key.startswith("(48, 48, 28"):
            entry["energy"] /= 2
    messages = flags(written(document, tmp_path / "t.json"))["not monotone"]
    assert len(messages) == 2
    assert messages[0].startswith("1 step to more channels cheaper (latency, ms): ")
    assert "(16, 40, 28, 1, 1, 0, 1) 0.736, (16, 48, 28, 1, 1, 0, 1) 0.7 at W4A4" in messages[0]
    assert "(energy, mJ): (40, 40, 28, 3, 1, 1, 40)" in messages[1]


# HAWQ's format


def hawq_document() -> dict[str, Any]:
    return {
        "net": {
            "Hutchinson_trace": [0.5, 0.25],
            "delta_weights_8bit_square": [0.1, 0.2],
            "delta_weights_4bit_square": [4.0, 8.0],
            "parameters": [10, 20],
            "bops": [100, 200],
            "latency_int4": [1.0, 2.0],
            "latency_int8": [1.5, 3.0],
        }
    }


def test_hawq_format(tmp_path: Path) -> None:
    path = written(hawq_document(), tmp_path / "t.json")
    (table,) = layer_tables(path)
    assert (table.name, table.network, table.precisions) == ("t", "net", ((4, 4), (8, 8)))
    assert table.matrix("sensitivity").tolist() == [[2.0, 0.05], [2.0, 0.05]]
    assert dict(table.layers[1].facts) == {"parameters": 20, "macs": 200}
    assert list(flags(path)) == ["origin"]


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("latency_int4", [1.0], "row 1 of latency_int4 is missing"),
        ("latency_int4", [1.0, None], "latency_int4, row 1 is missing"),
        ("latency_int4", [1.0, -2.0], "latency_int4, row 1 is -2 (negative)"),
        ("Hutchinson_trace", [0.5, "x"], "Hutchinson_trace, row 1 is 'x'"),
        ("latency_int4", 1.0, "latency_int4 is no list"),
        ("parameters", [], "parameters has 0 rows"),
        ("latency_int2", [1.0, math.inf], "row net layer 1, W2A2: latency is inf"),
    ],
)
def test_hawq_bad_rows(key: str, values: Any, words: str, tmp_path: Path) -> None:
    document = hawq_document()
    document["net"][key] = values
    with pytest.raises(TableError) as caught:
        import_file(written(document, tmp_path / "t.json"))
    assert words in str(caught.value)


def test_more_bits_should_be_dearer_and_less_sensitive(tmp_path: Path) -> None:
    document = hawq_document()
    document["net"]["latency_int8"][0] = 0.9
    document["net"]["delta_weights_8bit_square"][1] = 9.0
    messages = flags(written(document, tmp_path / "t.json"))["not monotone"]
    assert "cheaper (latency, ms): net layer 0 W4A4 1, W8A8 0.9" in messages[0]
    assert "more sensitive (sensitivity, no unit): net layer 1 W4A4 2, W8A8 2.25" in messages[1]


# Logs


def log(
    times: dict[str, float], whole_us: float = 9000.0, executed: int | None = None, **changes: str
) -> str:
    """A log as the benchmark tool writes it, cut to what is read."""
    start, rows = 0.0, []
    for name, time in times.items():
        rows.append(
            f"\t CONV_2D\t {start:.3f}\t {time:.3f}\t {time:.3f}\t 1.0%\t 1.0%\t 0.000\t 1\t[{name}]"
        )
        start += time
    head = {
        "Graph": "[/data/local/tmp/toy.tflite]",
        "Input shapes": "[1,224,224,3]",
        "Input types": "[float]",
        "Num threads": "[1]",
    } | changes
    return "\n".join(
        [
            *(
                f"native : benchmark_tflite_model.cc:5 {key}: {value}"
                for key, value in head.items()
            ),
            f"native : Average inference timings in us: Warmup: 1, no stats: {whole_us:.0f}",
            f"native : Number of nodes executed: {len(times) if executed is None else executed}",
            "============================== Run Order ==============================",
            "\t [node type]\t [start]\t [first]\t [avg ms]\t [%]\t [cdf%]\t [mem KB]"
            "\t[times called]\t[Name]",
            *rows,
            "",
            "============================== Top by Computation Time ===================",
            "",
        ]
    )


TIMES = {"a": 4.0, "b": 3.0, "c": 2.0}


def test_a_folder_of_logs(tmp_path: Path) -> None:
    (tmp_path / "r1.txt").write_text(log(TIMES))
    (tmp_path / "r2.log").write_text(log(TIMES | {"b": 3.5}, 9500))
    (tmp_path / "r3.txt").write_text(log(TIMES | {"b": 3.125}, 9100))
    (tmp_path / "README.md").write_text("no log")
    found = import_file(tmp_path, "toy")
    table = found.tables["toy"]
    assert isinstance(table, LayerTable)
    assert table.matrix().ravel().tolist() == [4.0, 3.125, 2.0]
    assert table.whole == (9.0, 9.5, 9.1)
    assert table.layers[1].facts == {"runs": 3, "lowest_ms": 3.0, "highest_ms": 3.5}
    assert (table.provenance, table.device) == ("measured", "unknown device, 1 thread")
    assert {flag.kind for flag in found.flags["toy"]} == {"origin", "drift"}


def test_a_copied_log_is_flagged(tmp_path: Path) -> None:
    for name in ("r1.txt", "r2.txt"):
        (tmp_path / name).write_text(log(TIMES))
    (found,) = import_file(tmp_path).flags.values()
    (flag,) = [flag for flag in found if flag.kind == "copied runs"]
    assert "r2.txt = r1.txt" in flag.message


def test_operators_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text(log(TIMES).replace("[c]", "[a]"))
    (table,) = layer_tables(path)
    assert [layer.label for layer in table.layers] == ["a", "b", "a (2)"]


def test_an_integer_network(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text(log(TIMES, **{"Input types": "[uint8]", "Num threads": "[4]"}))
    (table,) = layer_tables(path)
    assert (table.precisions, table.device) == (((8, 8),), "unknown device, 4 threads")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (log(TIMES).replace("2.000\t 1.0%", "-2.000\t 1.0%"), "operator 2, c is -2 (negative)"),
        (log(TIMES).replace("2.000\t 1.0%", "nan\t 1.0%"), "operator 2, c is missing"),
        (log(TIMES).replace("2.000\t 1.0%", "two\t 1.0%"), "operator 2, c: 'two' is no time"),
        (log(TIMES).replace("\t 1\t[c]", ""), "operator 2 is cut off"),
        (log(TIMES, executed=4), "4 operators ran and 3 are listed"),
        (log({}), "is empty"),
        (log(TIMES, -5), "average inference time is -5 (negative)"),
        (log(TIMES).replace("no stats", "stats"), "the average inference time"),
        (log(TIMES).replace("Graph", "Grape"), "the graph's name"),
        (log(TIMES).replace("[avg ms]", "[best ms]"), "no columns [avg ms]"),
        (log(TIMES, **{"Input types": "[string]"}), "unknown input type 'string'"),
    ],
)
def test_bad_logs(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(TableError) as caught:
        import_file(tmp_path / "r.txt")
    assert words in str(caught.value)
    assert "r.txt" in str(caught.value)


def test_a_missing_operator_is_named_or_placed(tmp_path: Path) -> None:
    lines = log(TIMES).splitlines()
    cut = "\n".join(line for line in lines if "[b]" not in line)
    (tmp_path / "r1.txt").write_text(cut)
    with pytest.raises(TableError, match=r"3 operators ran and 2 are listed.*between a and c"):
        import_file(tmp_path / "r1.txt")
    (tmp_path / "r2.txt").write_text(log(TIMES))
    with pytest.raises(TableError, match="operator b is missing in the former"):
        import_file(tmp_path)
    (tmp_path / "r0.txt").write_text(log(TIMES))
    with pytest.raises(TableError, match=r"r0\.txt and r1\.txt.*operator b is missing there"):
        import_file(tmp_path)


def test_runs_under_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "r1.txt").write_text(log(TIMES))
    (tmp_path / "r2.txt").write_text(log(TIMES, **{"Num threads": "[4]"}))
    with pytest.raises(TableError, match="threads 1 and 4"):
        import_file(tmp_path)
    (tmp_path / "r2.txt").write_text("no log")
    with pytest.raises(TableError, match=r"r2\.txt is no benchmark log"):
        import_file(tmp_path)


# Trimtab's own


def kernel_table(*rows: Row) -> LatencyTable:
    table = LatencyTable.empty(parse_target("x86-ort")).with_rows(rows)
    return replace(table, host=OTHER)


def test_kernels_of_another_machine(tmp_path: Path) -> None:
    table = kernel_table(*(made_up_row(conv_kernel(c, c), 0.1 * c) for c in (16, 32, 64)))
    table.save(tmp_path / "board.json")
    found = import_file(tmp_path / "board.json")
    assert found.format == "trimtab"
    assert dict(found.tables) == {"board": table}
    assert found.flags == {"board": ()}


def test_kernel_rows_are_looked_at(tmp_path: Path) -> None:
    rows = [made_up_row(conv_kernel(16, c), us) for c, us in ((16, 3.0), (32, 2.0), (48, 2.0))]
    kernel_table(*rows).save(tmp_path / "t.json")
    messages = flags(tmp_path / "t.json")
    (copies,) = messages["copies"]
    assert copies.startswith("1 of 3 rows with exactly the numbers of another: ")
    (steps,) = messages["not monotone"]
    assert steps.startswith("1 step to more channels cheaper beyond both intervals: ")
    assert "1x16x8x8 3.00 us" in steps and "1x32x8x8 2.00 us" in steps


def test_floats_cheaper_than_integers_are_flagged(tmp_path: Path) -> None:
    floats = conv_kernel(16, 16)
    image, weight = TensorSpec("uint8", (1, 16, 8, 8)), TensorSpec("int8", (16, 16, 3, 3), True)
    integers = Kernel("", "QLinearConv", 10, floats.attributes, (image, weight), (image,))
    kernel_table(made_up_row(floats, 2.0), made_up_row(integers, 3.0)).save(tmp_path / "t.json")
    (steps,) = flags(tmp_path / "t.json")["not monotone"]
    assert "1 step to more bits" in steps and "QLinearConv" in steps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(median_us=-1.0), "median_us is -1"),
        (lambda row: row.update(median_us=None), "float"),
        (lambda row: row.pop("median_us"), "median_us"),
        (lambda row: row.update(provenance="modelled"), "modelled"),
    ],
)
def test_bad_kernel_rows_are_named(
    change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path
) -> None:
    data = kernel_table(made_up_row(conv_kernel(), 1.0)).to_json()
    change(data["rows"][conv_kernel().key])
    with pytest.raises(TableError) as caught:
        import_file(written(data, tmp_path / "t.json"))
    assert conv_kernel().key in str(caught.value)
    assert words in str(caught.value)


def test_a_table_without_rows(tmp_path: Path) -> None:
    kernel_table().save(tmp_path / "t.json")
    with pytest.raises(TableError, match="no rows"):
        import_file(tmp_path / "t.json")


def test_a_layer_table_comes_back_as_it_was(tmp_path: Path) -> None:
    array = haq_array()
    array[1] = array[0]
    (table,) = layer_tables(saved(array, tmp_path / "t.npy"))
    table.save(tmp_path / "again.json")
    (again,) = layer_tables(tmp_path / "again.json", "t")
    assert again == table
    assert [flag.kind for flag in again.flags] == ["origin", "copies"]


# Files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "no format that can be imported"),
        (b"[1, 2]", "no format that can be imported"),
        (b"PK\x03\x04", "no format that can be imported"),
        (b'{"a": ', "not valid JSON"),
        (b"{\xff}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_files_of_no_format(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(TableError, match=words) as caught:
        import_file(path)
    assert "table.json" in str(caught.value)


def test_files_that_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_FILE_BYTES", 2**20)
    (tmp_path / "large.npy").write_bytes(b"\x93NUMPY" + b"\0" * 2**20)
    with pytest.raises(TableError, match="larger than 1 MiB"):
        import_file(tmp_path / "large.npy")
    with pytest.raises(TableError, match="there is no file"):
        import_file(tmp_path / "absent.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(TableError, match="no ordinary file"):
        import_file(tmp_path / "pipe.npy")
    monkeypatch.setattr(contents, "MAX_LOGS", 1)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(log(TIMES))
    with pytest.raises(TableError, match="2 logs; at most 1"):
        import_file(tmp_path)


def test_names() -> None:
    assert default_name(Path("x/my board (v2).npy")) == "my-board-v2"
    assert default_name(Path("x86-ort-threads-1-batch-1-0123456789ab.json")) == (
        "x86-ort-threads-1-batch-1"
    )
    assert default_name(Path("....json")) == "table"
