"""Names of targets and tables are looked up in one place."""

from __future__ import annotations

from pathlib import Path

import pytest
from latency_fakes import conv_kernel, made_up_row
from test_table_target import ELSEWHERE, H100, elsewhere

from latency_tables import (
    Catalog,
    LatencyTable,
    TableError,
    TargetError,
    known_targets,
    parse_target,
)
from latency_tables.layer import Layer, Quantity
from latency_tables.layer_table import LayerTable, RowKey
from latency_tables.store import table_name
from latency_tables.table_target import TableTarget


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog.of(tmp_path)
    assert made.store is not None
    made.store.add_imported({"board": elsewhere().table})
    return made


def test_targets_tables_and_those_that_come_along(catalog: Catalog) -> None:
    assert set(catalog.targets()) == {*known_targets(), "board", H100}
    assert catalog.target("x86-ort?threads=2").spec == "x86-ort?threads=2&batch=1"
    target = catalog.target("board")
    assert isinstance(target, TableTarget) and target.inner.spec == "x86-ort?threads=1&batch=2"
    assert catalog.target(H100).name == H100
    assert catalog.is_shipped(H100) and not catalog.is_shipped("board")
    assert Catalog().targets() == (*known_targets(), H100)


def test_a_name_nobody_knows_lists_those_that_are(catalog: Catalog) -> None:
    with pytest.raises(
        TargetError, match=rf"did you mean 'board'.*known: .*x86-ort, board, {H100}"
    ):
        catalog.target("bord")
    with pytest.raises(TableError, match="known: board"):
        catalog.table("nothing")
    with pytest.raises(TargetError, match="no option"):
        catalog.target("x86-ort?speed=1")


def test_a_table_takes_no_options(catalog: Catalog) -> None:
    with pytest.raises(TargetError, match=r"takes no options such as 'batch=8'.*batch=2"):
        catalog.target("board?batch=8")


def test_tables_of_layers_are_no_targets(catalog: Catalog, layers: LayerTable) -> None:
    assert catalog.store is not None
    catalog.store.add_imported({"others": layers})
    assert "others" in catalog.tables and "others" not in catalog.targets()
    with pytest.raises(TargetError, match=r"rows are layers of resnet18 .*not kernels.*board"):
        catalog.target("others")


@pytest.fixture
def layers() -> LayerTable:
    return LayerTable(
        name="others",
        key=RowKey.LAYER,
        layers=(Layer("layer 0"),),
        precisions=((8, 8),),
        quantities=(Quantity("latency", "ms", ((1.0,),)),),
        provenance="imported",
        source="somebody's file",
        sha256="0" * 64,
        network="resnet18",
    )


def test_this_machines_own_table_is_the_target_that_measures(tmp_path: Path) -> None:
    catalog, target = Catalog.of(tmp_path), parse_target("x86-ort")
    if not target.can_measure:
        pytest.skip("not an x86 machine")
    assert catalog.store is not None
    catalog.store.add(target, [made_up_row(conv_kernel(), 10.0)])
    name = table_name(target.spec, target.host())
    assert catalog.target(name).spec == target.spec
    # The same rows brought here under a name of their own are still a table, of this machine.
    catalog.store.add_imported({"mine": catalog.store.load(target)})
    mine = catalog.target("mine")
    assert isinstance(mine, TableTarget) and mine.can_measure


def test_a_table_of_a_target_nobody_can_read_says_so(tmp_path: Path) -> None:
    catalog = Catalog.of(tmp_path)
    assert catalog.store is not None
    strange = LatencyTable("tpu-v9?batch=1", "tpu", ELSEWHERE, "2026-01-01T00:00:00+00:00")
    catalog.store.add_imported({"tpu": strange.with_rows([made_up_row(conv_kernel(), 1.0)])})
    with pytest.raises(TargetError, match=r"kernels of tpu-v9.*unknown target"):
        catalog.target("tpu")
