"""``trimtab tables import | list | show`` on tables of layers and of kernels."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latency_tables import (
    HostFingerprint,
    Kernel,
    LatencyTable,
    Row,
    TableStore,
    TensorSpec,
    parse_target,
)
from service import cli
from service.routes_catalog import list_tables

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on a state of the test's own; gives exit code, output and errors."""
    for name in list(os.environ):
        if name.startswith("TRIMTAB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path / "state"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def haq_file(tmp_path: Path) -> Path:
    """Three layers at 1 to 8 bits, the last a copy of the second."""
    bits = np.arange(1, 9)
    first = 100 * bits[:, None] + 10 * bits[None, :]
    path = tmp_path / "my table.npy"
    np.save(path, np.stack([first, 2 * first, 2 * first]).astype(np.int64))
    return path


@pytest.fixture
def kernel_file(tmp_path: Path) -> Path:
    """A table as another machine's store holds it."""
    spec = TensorSpec("float32", (1, 8, 8, 8))
    kernel = Kernel("", "Relu", 14, (), (spec,), (spec,))
    row = Row(kernel, 7, 1.5, 1.4, 1.6, (1.45, 1.55), "2026-01-01T00:00:00+00:00", 200.0, 200.0)
    host = HostFingerprint("Z80", (), 1, "onnxruntime 1.0", "CP/M")
    table = LatencyTable("x86-ort?threads=1&batch=1", "x86", host, "2026-01-01T00:00:00+00:00")
    path = tmp_path / "x86-ort-threads-1-batch-1-0123456789ab.json"
    table.with_rows([row]).save(path)
    return path


def own(run: Run) -> Any:
    """What ``tables list`` says of the tables that did not come with Trimtab."""
    items = document(run("tables", "list", "--json"))["items"]
    return [item for item in items if not item["shipped"]]


def document(result: tuple[int, str, str]) -> Any:
    assert result[0] == 0, result
    return json.loads(result[1])


def test_import_list_and_show(run: Run, haq_file: Path) -> None:
    code, out, _ = run("tables", "import", str(haq_file), "--name", "mine")
    assert code == 0
    assert "imported mine (haq): 3 layers at 64 precisions" in out
    assert "copies: 1 of 3 rows the same" in out
    assert "origin: the file does not say" in out
    code, out, _ = run("tables", "list")
    assert code == 0 and "mine" in out and "imported" in out
    code, out, _ = run("tables", "show", "mine")
    assert code == 0
    assert "latency in cycles; imported" in out
    assert "8 of 64 precisions" in out
    (line,) = [line for line in out.splitlines() if line.startswith("layer 1")]
    assert line.split() == ["layer", "1", *(str(220 * bits) for bits in range(1, 9))]


def test_json(run: Run, haq_file: Path) -> None:
    result = document(run("tables", "import", str(haq_file), "--json"))
    (item,) = result["tables"]
    assert (result["format"], item["name"], item["new"]) == ("haq", "my-table", True)
    assert {flag["kind"] for flag in item["flags"]} == {"copies", "origin"}
    (listed,) = own(run)
    assert {key: item[key] for key in listed} == listed
    assert listed["kind"] == "layers" and listed["host"] is None and listed["imported"]
    assert listed["quantities"] == {"latency": "cycles"}
    assert listed["weight_bits"] == listed["activation_bits"] == list(range(1, 9))
    shown = document(run("tables", "show", "my-table", "--json"))
    assert shown["digest"] == listed["digest"]
    assert shown["rows"][2]["latency"][0] == 220


def test_importing_twice(run: Run, haq_file: Path) -> None:
    run("tables", "import", str(haq_file))
    code, out, _ = run("tables", "import", str(haq_file))
    assert code == 0 and "was there already" in out
    np.save(haq_file, np.full((3, 8, 8), 7))
    code, out, err = run("tables", "import", str(haq_file))
    assert (code, out) == (2, "")
    assert "another content" in err and "--name" in err
    assert run("tables", "import", str(haq_file), "--name", "other")[0] == 0
    assert len(own(run)) == 2


def test_another_machines_kernels(run: Run, kernel_file: Path) -> None:
    (item,) = document(run("tables", "import", str(kernel_file), "--json"))["tables"]
    assert item["name"] == "x86-ort-threads-1-batch-1"
    assert (item["kind"], item["imported"], item["provenance"]) == ("kernels", True, "measured")
    assert "imported" in run("tables", "list")[1]
    assert "Z80" in run("tables", "show", item["name"])[1]
    code, _, err = run("tables", "check", item["name"])
    assert code == 2 and "another machine" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b"a,b\n1,2\n", "Known are: haq"),
        (b"{}", "Known are: haq"),
        (b'{"(1, 2', "not valid JSON"),
    ],
)
def test_bad_files_are_one_line_and_exit_2(
    run: Run, content: bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("tables", "import", str(path))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("trimtab: ")
    assert words in err


def test_a_bad_row_is_named_and_nothing_is_stored(run: Run, haq_file: Path) -> None:
    array = np.load(haq_file)
    array[1, 3, 4] = -1
    np.save(haq_file, array)
    code, _, err = run("tables", "import", str(haq_file))
    assert code == 2 and "row layer 1, W4A5: latency is -1 (negative)" in err
    assert own(run) == []


def test_layers_cannot_be_measured_again(run: Run, haq_file: Path) -> None:
    run("tables", "import", str(haq_file), "--name", "mine")
    code, _, err = run("tables", "check", "mine")
    assert code == 2 and "layers and not kernels" in err


SHIPPED = "cuda-torch-h100-batch32"


def test_a_shipped_table(run: Run, tmp_path: Path) -> None:
    (line,) = [x for x in run("tables", "list")[1].splitlines() if x.startswith(SHIPPED)]
    assert "H100" in line and "comes with Trimtab" in line
    picture = tmp_path / "stairs.png"
    code, out, _ = run("tables", "show", SHIPPED, "--kernel", "28x28", "--plot", str(picture))
    assert code == 0
    assert "net energy" in out and re.search(r"drew \d+ staircases.*stairs\.png", out)
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, err = run("tables", "check", SHIPPED)
    assert code == 2 and "another machine" in err


def test_only_some_kernels(run: Run, tmp_path: Path) -> None:
    shown = document(run("tables", "show", SHIPPED, "--kernel", "HardSigmoid", "--json"))
    kinds = {row["kernel"]["op_type"] for row in shown["rows"].values()}
    assert kinds == {"HardSigmoid"}
    code, _, err = run("tables", "show", SHIPPED, "--kernel", "nothing")
    assert code == 2 and "no row of the table holds that" in err
    path = tmp_path / "a.png"
    code, _, err = run("tables", "show", SHIPPED, "--kernel", "HardSigmoid", "--plot", str(path))
    assert code == 2 and "no staircase to draw" in err and not path.exists()


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_a_table_goes_out_and_comes_in(
    run: Run, kernel_file: Path, haq_file: Path, ending: str, tmp_path: Path
) -> None:
    run("tables", "import", str(kernel_file), "--name", "kernels")
    run("tables", "import", str(haq_file), "--name", "layers")
    digests = {item["name"]: item["digest"] for item in own(run)}
    for name in ("kernels", "layers"):
        path = tmp_path / f"{name}-again.{ending}"
        code, out, _ = run("tables", "show", name, "--out", str(path))
        assert code == 0 and f"wrote {path}" in out
        (item,) = document(run("tables", "import", str(path), "--json"))["tables"]
        assert (item["name"], item["digest"]) == (f"{name}-again", digests[name])
    code, _, err = run("tables", "show", "kernels", "--out", str(tmp_path / "t.csv"))
    assert code == 2 and "ends in .parquet or .json" in err


def test_layers_are_drawn_against_bits(run: Run, haq_file: Path, tmp_path: Path) -> None:
    run("tables", "import", str(haq_file), "--name", "mine")
    picture = tmp_path / "bits.svg"
    code, out, _ = run("tables", "show", "mine", "--plot", str(picture))
    assert code == 0 and "drew 2 staircases" in out  # the third layer is a copy
    assert "weight bits" in picture.read_text()
    shown = run("tables", "show", "mine", "--kernel", "layer 1", "--plot", str(picture))[1]
    assert "drew 1 staircase:" in shown and "\nlayer 2" not in shown
    code, _, err = run("tables", "show", "mine", "--plot", str(tmp_path / "bits.txt"))
    assert code == 2 and "ends in png" in err


def test_checking_a_table_of_this_machine(run: Run, tmp_path: Path) -> None:
    spec = TensorSpec("float32", (1, 64, 16, 16))
    kernels = [
        Kernel("", "Relu", 14, (), (spec,), (spec,)),
        Kernel("", "Sigmoid", 13, (), (spec,), (spec,)),
    ]
    target = parse_target("x86-ort")
    store = TableStore(tmp_path / "state" / "tables")
    rows = target.measure_kernels(kernels).rows
    store.add(target, rows)
    (name,) = store.list()
    code, out, _ = run("tables", "check", name, "--json")
    found = json.loads(out)
    assert code == (0 if found["holds"] else 1)
    assert found["rows_checked"] == 2 and found["shift"]["float"]["rows"] == 2
    # Stored times that are far too long are no longer those of this machine.
    changes = {"time": "2100", "median_us": 1e4, "p10_us": 1e4, "p90_us": 1e4, "ci95": (1e4, 1e4)}
    store.add(target, [replace(row, **changes) for row in rows])  # type: ignore[arg-type]
    code, out, _ = run("tables", "check", name)
    assert code == 1
    assert f"{name} does not hold: half of the rows differ" in out
    assert "measured again in 3 runs" in out


def test_rest_lists_them_too(run: Run, haq_file: Path, kernel_file: Path, tmp_path: Path) -> None:
    for path, name in [(haq_file, "mine"), (kernel_file, "theirs")]:
        run("tables", "import", str(path), "--name", name)
    services: Any = SimpleNamespace(settings=SimpleNamespace(data_dir=tmp_path / "state"))
    items = {item["name"]: item for item in list_tables(services)["items"]}
    assert (items["mine"]["target"], items["mine"]["rows"]) == ("mine", 3)
    assert items["theirs"]["target"] == "x86-ort?threads=1&batch=1"


def test_names_that_are_taken(run: Run, haq_file: Path) -> None:
    for name, words in [("x86-ort", "target's name"), ("a/b", "no table's name")]:
        code, _, err = run("tables", "import", str(haq_file), "--name", name)
        assert code == 2 and words in err
