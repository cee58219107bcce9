"""Targets that other distributions bring: made, listed, refused, and a job on one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_folder import BENCH, BOARD, bring, bring_board, remove
from rest_server import SPEC, Running, serving

from latency_tables import (
    LatencyTable,
    TableStore,
    Target,
    TargetError,
    known_targets,
    parse_target,
)
from latency_tables.contract import TargetContract, small_network
from service import cli
from service.graph_cache import GraphCache
from service.job_spec import JobSpec
from service.local_context import job_key
from service.plugin_targets import catalog_of
from service.plugins import ALL, Group, PluginError

H100 = "cuda-torch-h100-batch32"
BAD = """
class Other:
    def __init__(self, lanes: int = 1):
        pass

def needs(threads):
    pass

def breaks(threads=1):
    import no_such_runtime

def named(batch=1):
    from latency_tables import parse_target
    return parse_target(f"sim-bitfusion?batch={batch}")

def deaf(lanes=1):
    from boards import Board

    class Odd(Board):
        name = "odd"
        spec = "odd?batch=1&lanes=1"

    return Odd()
"""


@pytest.fixture
def board(plugin_folder: Path) -> Path:
    bring_board(plugin_folder)
    return plugin_folder


def made(text: str) -> Target:
    return catalog_of(None, [ALL]).target(text)


@pytest.mark.usefixtures("board")
class TestBoard(TargetContract):
    def target(self) -> Target:
        return made("board?batch=2")

    def parse(self, text: str) -> Target:
        return made(text)


def test_a_target_is_made_of_its_options(board: Path) -> None:
    target = made("board?lanes=3")
    assert target.spec == "board?batch=1&lanes=3" and dict(target.options)["lanes"] == 3
    catalog = catalog_of(None, [ALL])
    assert "board" in catalog.targets() and "board" in catalog.devices()
    model = small_network(1)
    slow, fast = (
        sum(row.median_us for row in one.rows(use.kernel for use in one.kernels(model)))
        for one in (target, parse_target("sim-bitfusion"))
    )
    assert slow == pytest.approx(2 * fast)
    for text, says in (
        ("board?volts=3", "no option 'volts'; known: batch, lanes"),
        ("board?lanes=0", "1 to 4096"),
        ("board?lanes=2&lanes=2", "twice"),
        ("bord", "did you mean 'board'"),
    ):
        with pytest.raises(TargetError, match=says.replace("?", r"\?")):
            catalog.target(text)


def test_only_what_is_allowed_is_loaded(plugin_folder: Path) -> None:
    mark = plugin_folder / "was here"
    code = f"open({str(mark)!r}, 'w')\n{BOARD}"
    bring(plugin_folder, "boards", {"board": "boards:Board"}, code, group=Group.TARGETS)
    with pytest.raises(PluginError, match=r"boards 1\.0.*not allowed.*--allow-plugin board"):
        catalog_of(None, ["last"]).target("board")
    assert not mark.exists()
    assert catalog_of(None, ["board"]).target("board").name == "board" and mark.exists()


def test_our_names_and_those_of_tables_are_not_taken(board: Path, tmp_path: Path) -> None:
    points = dict.fromkeys(("x86-ort", H100), "impostor:Board")
    bring(board, "impostor", points, BOARD, group=Group.TARGETS)
    catalog = catalog_of(tmp_path, [ALL])
    assert catalog.target("x86-ort").spec == parse_target("x86-ort").spec
    assert catalog.target(H100).name == H100
    with_table(tmp_path, "sim-bitfusion", "board")
    assert catalog.target("board").spec == "board" and catalog.device("board").batch == 1
    assert catalog.targets().count("board") == 1


def with_table(data_dir: Path, target: str, name: str) -> None:
    board = made(target)
    rows = board.rows(use.kernel for use in board.kernels(small_network(board.batch)))
    table = LatencyTable.empty(board).with_rows(rows)
    TableStore(data_dir / "tables").add_imported({name: table})


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("Other", "gives Other, which is no latency_tables.Target"),
        ("needs", "takes threads where only options with defaults can stand"),
        ("breaks", "No module named 'no_such_runtime'. Install what it needs"),
        ("named", "calls itself 'sim-bitfusion'"),
        ("deaf", "asked for lanes=2 and says it has"),
        ("absent", "cannot be loaded from bad:absent: AttributeError"),
        ("__name__", "no function"),
    ],
)
def test_what_is_no_target_says_whose_it_is(board: Path, point: str, says: str) -> None:
    bring(board, "bad", {"odd": f"bad:{point}"}, BAD, "0.3", Group.TARGETS)
    with pytest.raises(PluginError, match=r"the target 'odd' of bad 0\.3") as refused:
        made("odd?lanes=2" if point == "deaf" else "odd")
    assert says in str(refused.value)


def test_what_is_kept_is_of_one_version(board: Path, tmp_path: Path) -> None:
    spec = JobSpec.model_validate(SPEC | {"target": "board?lanes=2"})
    cached = {None}
    keys = {job_key(JobSpec.model_validate(SPEC), None)}
    for version in ("1.0", "1.1"):
        if version != "1.0":
            remove(board, "boards")
            bring_board(board, version)
        keys.add(job_key(spec, None))
        with_table(tmp_path / version, "board", "shelf")
        for target in (made("board"), catalog_of(tmp_path / version, [ALL]).target("shelf")):
            cached.add(kernels_file(target))
    assert len(keys) == 3 and len(cached) == 5


def kernels_file(target: Target) -> str:
    """Name of the file in which a job keeps kernels."""

    class Space:
        digest = "0"

    class NetworkSpace:
        space = Space()

    return GraphCache(Path("nowhere"), NetworkSpace(), target, [])._file.name  # type: ignore[arg-type]


def test_on_the_command_line(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path / "state"))
    model = ["--model", SPEC["model"]["source"]]
    job = [*model, "--data", "digits", "--budget", "latency=0.5", "--scope", "quantize", "--json"]
    assert cli.main(["plan", *job, "--target", "board?lanes=2"]) == 0
    plans = [json.loads(capsys.readouterr().out)]
    assert cli.main(["plan", *job, "--target", "sim-bitfusion"]) == 0
    plans.append(json.loads(capsys.readouterr().out))
    slow, fast = (plan["smallest"]["latency_ms"]["value"] for plan in plans)
    assert slow == pytest.approx(2 * fast)
    asked = ["measure", *model, "--input", "1x8x8"]
    for arguments, says in (
        ([*asked, "--target", "board"], "nothing can be timed"),
        ([*asked, "--target", "board", "--kit", str(tmp_path / "kit")], "x86-ort"),
        ([*asked, "--target", "board?volts=1"], "no option 'volts'"),
        ([*asked, "--target", H100], "is a table; a device is needed"),
        (["plan", *job, "--target", "bord"], "did you mean 'board'"),
    ):
        assert cli.main(arguments) != 0
        assert says in capsys.readouterr().err
    bring(board, "benches", {"bench": "benches:bench"}, BENCH, group=Group.TARGETS)
    assert cli.main([*asked, "--target", "bench?threads=1", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["target"] == "bench?threads=1&batch=1"
    assert measured["table_rows"] == measured["measured"] > 3
    with_table(tmp_path / "other", "board", "board")
    file = tmp_path / "board.json"
    file.write_text(json.dumps(TableStore(tmp_path / "other" / "tables").get("board").to_json()))
    assert cli.main(["tables", "import", str(file)]) == 2
    assert "name of a plug-in's target" in capsys.readouterr().err
    assert cli.main(["tables", "import", str(file), "--name", "shelf"]) == 0
    assert cli.main(["tables", "list", "--json"]) == 0
    items = json.loads(capsys.readouterr().out.partition("\n")[2])["items"]
    targets = {item["name"]: item["target"] for item in items}
    assert targets["shelf"] == "board?batch=1&lanes=1"
    assert measured["target"] in targets.values()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """Not on this process's import path: whatever is loaded is loaded elsewhere."""
    site = tmp_path / "site"
    bring_board(site)
    killer = "import os\nos._exit(7)"
    bring(site, "killer", {"killer": "killer:build"}, killer, group=Group.TARGETS)
    bring(site, "nosy", {"nosy": "nosy:Board"}, BOARD, group=Group.TARGETS)
    bring(site, "impostor", {"x86-ort": "impostor:Board"}, BOARD, group=Group.TARGETS)
    bring(site, "bad", {"breaks": "bad:breaks"}, BAD, "0.3", Group.TARGETS)
    given = {"code_paths": [site], "allow_plugins": ["board", "killer", "breaks"]}
    with serving(tmp_path / "data", **given) as running:
        yield running
    assert not {"boards", "killer", "nosy", "bad", "impostor"} & set(sys.modules)


def test_the_server_lists_them_and_says_why_one_is_unusable(server: Running) -> None:
    items = server.client().targets()["items"]
    found = {item["name"]: item for item in items if item["distribution"] != "trimtab"}
    assert {item["name"] for item in items if item not in found.values()} == {
        *known_targets(),
        H100,
    }
    assert found["board"] == {
        "name": "board",
        "options": {"batch": 1, "lanes": 1},
        "device_class": parse_target("sim-bitfusion").device_class,
        "precisions": list(parse_target("sim-bitfusion").precisions),
        "can_measure": False,
        "table_of": None,
        "no_energy": None,
        "distribution": "boards 1.0",
        "unusable": None,
    }
    assert "ended with code 7" in found["killer"]["unusable"]
    assert "not allowed" in found["nosy"]["unusable"]
    assert "Trimtab's own" in found["x86-ort"]["unusable"]
    assert "bad 0.3" in found["breaks"]["unusable"]
    assert "no_such_runtime" in found["breaks"]["unusable"]


def test_a_job_may_name_one_and_is_refused_at_once_where_it_cannot_run(server: Running) -> None:
    http, client = server.http, server.client()
    several = {key: value for key, value in SPEC.items() if key not in ("target", "budget")}
    budget = {"budget": {"latency": 0.5}}
    both = [{"name": "sim-bitfusion", **budget}, {"name": "board", **budget}]
    cases = [
        (SPEC | {"target": "nosy"}, "target", "not allowed by the operator"),
        (SPEC | {"target": "killer"}, "target", "ended with code 7"),
        (SPEC | {"target": "bord"}, "target", "did you mean 'board'"),
        (several | {"targets": [*both, both[1]]}, "targets.2.name", "are the same"),
        (several | {"targets": [both[0], {"name": "nosy", **budget}]}, "targets.1.name", "nosy"),
    ]
    for body, where, says in cases:
        answer = http.post("/v1/jobs", json=body)
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert error["field"] == where and says in error["message"]
    assert http.get("/v1/jobs").json()["items"] == []
    plan = client.plan(SPEC | {"target": "board", "space": {"scope": "quantize"}})
    assert plan["smallest"]["latency_ms"]["value"] > 0 and plan["target"].startswith("board")


def test_a_table_of_its_kernels_is_a_target_too(server: Running, tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path / "site"))
    try:
        with_table(server.services.settings.data_dir, "board", "shelf")
    finally:
        sys.path.pop(0)
        del sys.modules["boards"]
    items = {item["name"]: item for item in server.client().targets()["items"]}
    assert items["shelf"]["table_of"] == "board?batch=1&lanes=1"
    assert items["shelf"]["unusable"] is None and items["shelf"]["distribution"] == "trimtab"
    assert server.client().submit(SPEC | {"target": "shelf"})["id"]
