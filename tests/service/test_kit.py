"""The measuring kit: what is in it, and that it measures alone, is interrupted and goes on."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from packaging.requirements import Requirement

from compressors import Choices, Compressor
from compressors.exporter import export_onnx
from latency_tables import LatencyTable, TableError, TableStore, Target, TargetError, parse_target
from latency_tables import kit_script as script
from latency_tables.host import cpu_info
from latency_tables.kit import SCRIPT, kit_modules
from latency_tables.kit_command import STATE_FILE, main
from latency_tables.kit_device import SLICE, slices
from latency_tables.kit_interrupts import Interrupts
from latency_tables.kit_network import compact, expanded
from latency_tables.kit_plan import PLAN_FILE, UNCOMPRESSED, KitPlan
from latency_tables.kit_progress import KitProgress
from latency_tables.kit_results import NETWORKS_FILE, TABLE_FILE
from latency_tables.kit_state import KitState
from latency_tables.kit_target import DeviceTarget
from service import cli
from service.graphs import Graphs, integer_layers
from service.job_setup import LoadedNetwork, load_network
from service.kit import kit_policies, make_kit, seen, spread
from service.sources import Sources
from tests.networks import SHAPE, SMALL

SOURCE = "python:tests.networks:PadResNet"
DIGITS = ("measure", "--model", "python:service.demo_networks:digits_cnn", "--input", "1x8x8")
SOURCES = Sources(allow=("python:*",))


def quiet(*_: Any) -> None:
    """Nobody looks at the progress."""


@pytest.fixture(scope="module")
def target() -> Target:
    return parse_target("x86-ort")


@pytest.fixture(scope="module")
def network(target: Target) -> LoadedNetwork:
    return load_network(SOURCE, SOURCES, None, SHAPE, target)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Path:
    folder = tmp_path_factory.mktemp("kits") / "kit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.kit.TIMED", 6)  # seconds of timing saved
        make_kit(SOURCE, SOURCES, SHAPE, target, folder, quiet, samples=6)
    return folder


@pytest.fixture
def kit(written: Path, tmp_path: Path) -> Path:
    """A kit of the test's own."""
    return Path(shutil.copytree(written, tmp_path / "kit"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from that holds what installing three packages would, and nothing else."""
    site = tmp_path_factory.mktemp("bare")
    left, found = list(script.PACKAGES), set()
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return site


def start(kit: Path, bare: Path, *arguments: str) -> subprocess.Popen[str]:
    """Runs ``measure.py`` where nothing but those packages can be imported."""
    code = (
        "import runpy, sys; "
        f"sys.path.append({str(bare)!r}); sys.argv = {['measure.py', *arguments]!r}; "
        f"runpy.run_path({str(kit / 'measure.py')!r}, run_name='__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=kit.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def lines_of(kit: Path, kind: str) -> list[dict[str, Any]]:
    """Whole lines of one kind in the state."""
    state = kit / STATE_FILE
    whole = state.read_bytes().rpartition(b"\n")[0] if state.exists() else b""
    found = [json.loads(line) for line in whole.split(b"\n")[1:]]
    return [record for record in found if record["kind"] == kind]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it holds; the process must not end before."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_kit_measures_alone_and_goes_on_after_a_kill(
    kit: Path, bare: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path / "state"))
    plan = KitPlan.load(kit)
    first = start(kit, bare)
    wait_for(lambda: bool(lines_of(kit, "row")), first)
    first.kill()
    first.communicate()
    killed = (kit / STATE_FILE).read_bytes().rpartition(b"\n")[0] + b"\n"
    before = len(lines_of(kit, "row"))
    assert not (kit / TABLE_FILE).exists()
    with (kit / STATE_FILE).open("ab") as file:
        file.write(b'{"kind":"row","row":{"ker')  # switched off in the middle of a line

    second = start(kit, bare)
    assert second.stderr is not None
    assert any("3/3 timing kernels" in line for line in second.stderr)  # reads up to that line
    second.send_signal(signal.SIGTERM)
    _, told = second.communicate()
    assert second.returncode == 130, told
    assert "the same command goes on" in told
    assert "Traceback" not in told
    partial = LatencyTable.load(kit / TABLE_FILE, allow_other_host=True)
    assert before <= len(partial)

    third = start(kit, bare)
    said, told = third.communicate()
    assert third.returncode == 0, told
    assert "trimtab tables import" in said
    assert "3/3 timing kernels" in told

    # Nothing was measured twice, and what the first run measured is still there as it was.
    assert (kit / STATE_FILE).read_bytes().startswith(killed)
    for kind, name in (("graph", "network"), ("timed", "network"), ("failure", "key")):
        assert set(Counter(line[name] for line in lines_of(kit, kind)).values()) <= {1}
    rows = [line["row"] for line in lines_of(kit, "row")]
    table = LatencyTable.load(kit / TABLE_FILE, allow_other_host=True)
    assert len(rows) == len(table) > len(partial)
    assert all(row.count > 0 and row.provenance == "measured" for row in table.rows.values())

    # This machine is the device here, so its own runtime says which kernels are needed.
    failed = {line["key"] for line in lines_of(kit, "failure")}
    needed = Counter[str]()
    for network in plan.networks:
        for use in target.kernels(plan.bytes_of(kit, network)):
            needed[use.kernel.key] += 1
    assert needed.keys() == table.rows.keys() | failed
    assert table.target == target.spec
    assert table.host == target.host()

    document = json.loads((kit / NETWORKS_FILE).read_text())
    assert [n["name"] for n in document["networks"]] == [n.name for n in plan.networks]
    assert document["space"] == plan.space
    counts = Counter[str]()
    for network in document["networks"]:
        for key, _, count in network["kernels"]:
            counts[key] += count
    assert counts == needed
    timed = {n["name"]: n["timed"] for n in document["networks"] if n["timed"]}
    assert set(timed) == {n.name for n in plan.networks if n.timed}
    assert timed[UNCOMPRESSED]["ratio"] == 1.0
    assert all(entry["p50_ms"] > 0 for entry in timed.values())

    assert cli.main(["tables", "import", str(kit / TABLE_FILE), "--name", "my-board"]) == 0
    assert TableStore(tmp_path / "state" / "tables").get("my-board").digest == table.digest

    again = (kit / STATE_FILE).read_bytes()
    fourth = start(kit, bare, "--seconds", "0")
    said, told = fourth.communicate()
    assert fourth.returncode == 0, told
    assert (kit / STATE_FILE).read_bytes() == again


def test_the_bare_folder_is_bare(bare: Path) -> None:
    assert (bare / "onnxruntime").exists()
    for name in ("torch", "filelock", "service", "latency_tables", "trimtab", "pyarrow", "scipy"):
        assert not (bare / name).exists()


def test_what_a_kit_holds(kit: Path, target: Target, network: LoadedNetwork) -> None:
    plan = KitPlan.load(kit)
    space = network.network_space.space
    assert {path.name for path in kit.iterdir()} == {
        "README.txt", "measure.py", PLAN_FILE, "networks", "latency_tables",
    }  # fmt: skip
    text = (kit / "README.txt").read_text()
    for command in ("pip install numpy onnx onnxruntime", "measure.py", "trimtab tables import"):
        assert command in text
    assert [n.name for n in plan.networks[:2]] == [UNCOMPRESSED, "int8"]
    assert plan.networks[0].timed and plan.networks[1].timed
    assert (plan.space, plan.decisions) == (space.digest, space.ids)
    assert all(space.policy(n.values).values == n.values for n in plan.networks)
    for entry in plan.networks[:4]:
        path = kit / entry.file
        assert path.stat().st_size < 100_000
        onnx.checker.check_model(onnx.load(str(path)))
        assert target.kernels(plan.bytes_of(kit, entry))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_made_up_weights_lead_to_the_same_kernels(name: str, target: Target) -> None:
    source = f"python:tests.networks:{SMALL[name].__name__}"
    loaded = load_network(source, SOURCES, None, SHAPE, target)
    groups = list(loaded.network_space.groups.values())
    compressor = Compressor(loaded.prepared, torch.randn(4, *SHAPE), groups)
    graphs = Graphs(compressor, loaded.network_space, target)
    integer = Choices(integer=integer_layers(loaded.network_space, target, ()))
    for choices in (Choices(), integer):
        made = compressor.compress(choices, refit=False, quick=True)
        real = export_onnx(made.network, made.plan, 1)
        for model in (real, onnx.load_from_string(graphs.file(choices))):
            small = compact(model)
            assert len(small.SerializeToString()) < len(model.SerializeToString())
            onnx.checker.check_model(small)
            assert kernels(target, expanded(small)) == kernels(target, model)
            session = onnxruntime.InferenceSession(
                expanded(small).SerializeToString(), providers=["CPUExecutionProvider"]
            )
            shapes = {i.name: tuple(i.shape) for i in session.get_inputs()}
            feeds = {key: torch.randn(shape).numpy() for key, shape in shapes.items()}
            (output, *_) = session.run(None, feeds)
            assert abs(output).max() > 0


def kernels(target: Target, model: Any) -> Counter[str]:
    return Counter(use.kernel.key for use in target.kernels(model.SerializeToString()))


@pytest.mark.parametrize("samples", [0, 8])
def test_every_width_and_pair_of_precisions_is_shown(network: LoadedNetwork, samples: int) -> None:
    space = network.network_space.space
    policies = kit_policies(network.network_space, samples)
    assert len(policies) == len(set(policies))
    shown = set().union(*(seen(space, policy) for policy in policies))
    for i, decision in enumerate(space.decisions):
        for k in range(len(decision.values)):
            assert ((i, k),) in shown
    precisions = [i for i, d in enumerate(space.decisions) if d.kind == "precision"]
    for i, j in pairwise(precisions):
        assert {((i, k), (j, m)) for k in (0, 1) for m in (0, 1)} <= shown


def test_timed_networks_are_spread_over_all_sizes() -> None:
    assert spread(np.array([9.0, 9.0, 5.0, 1.0, 3.0, 7.0]), 5) == {0, 1, 3, 2, 5}
    assert spread(np.array([9.0, 9.0]), 5) == {0, 1}
    assert spread(np.array([9.0]), 5) == {0}


def test_the_code_needs_three_packages_and_python_3_10() -> None:
    modules = kit_modules()
    assert {
        "ort",
        "ort_bench",
        "ort_context",
        "ort_graph",
        "table",
        "kit_command",
    } <= modules.keys()
    assert not {"store", "kit", "contract"} & modules.keys()
    allowed = {*sys.stdlib_module_names, *script.PACKAGES, "latency_tables"}
    for source in modules.values():
        for node in ast.walk(ast.parse(source, feature_version=(3, 10))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.partition(".")[0] for name in names} <= allowed, names
    text = Path(script.__file__).read_text()
    assert Path(script.__file__).stem == SCRIPT
    ast.parse(text, feature_version=(3, 7))


@pytest.mark.parametrize(
    ("missing", "words"), [("fcntl", "WSL"), ("onnx", "pip install numpy onnx onnxruntime")]
)
def test_what_the_device_lacks_is_said(
    missing: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert script.main() == 1
    assert words in capsys.readouterr().err


def test_an_old_python_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 8, 18, "final", 0))
        code = script.main()
    assert code == 1
    assert "needs Python 3.10 or newer, and this is 3.8" in capsys.readouterr().err


def test_state_survives_a_torn_line_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    with KitState(path, {"plan": "a"}) as state:
        state.add_refused("one", "because")
        state.add_refused("two", "because")
        with pytest.raises(TableError, match="in use"):
            KitState(path, {"plan": "a"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with KitState(path, {"plan": "a"}) as state:
        assert list(state.refused) == ["one"]
        state.add_refused("two", "because")
    assert path.read_bytes() == whole
    with pytest.raises(TableError, match="plan was 'a' and is 'b'"):
        KitState(path, {"plan": "b"})
    path.write_bytes(whole.replace(b'"one"', b'"one'))
    with pytest.raises(TableError, match=r"line 2.*delete it and the lines after"):
        KitState(path, {"plan": "a"})
    path.write_bytes(b"")
    with KitState(path, {"plan": "b"}) as state:
        assert not state.refused


def test_a_damaged_kit(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(kit), ["--threads", "0"]) == 2
    assert "1 or more" in capsys.readouterr().err
    first = kit / KitPlan.load(kit).networks[0].file
    first.write_bytes(first.read_bytes()[:-1])
    assert main(str(kit), []) == 2
    assert "damaged or incomplete; copy the kit again" in capsys.readouterr().err
    assert not (kit / TABLE_FILE).exists()
    (kit / PLAN_FILE).write_text("{}")
    assert main(str(kit), []) == 2
    assert "no plan of a measuring kit" in capsys.readouterr().err


def test_out_of_time_before_anything(
    kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main(str(kit), ["--seconds", "0", "--out", str(out), "--threads", "2"]) == 0
    told = capsys.readouterr()
    assert "no kernel was timed yet" in told.err
    assert told.out == ""
    assert {path.name for path in out.iterdir()} == {STATE_FILE}
    # The same folder cannot hold what another number of threads gives.
    assert main(str(kit), ["--seconds", "0", "--out", str(out)]) == 2
    assert "threads=2" in capsys.readouterr().err


def test_slices_are_of_one_arithmetic_and_most_used_first(kit: Path, target: Target) -> None:
    plan = KitPlan.load(kit)
    found = {
        use.kernel.key: use.kernel
        for network in plan.networks
        for use in target.kernels(plan.bytes_of(kit, network))
    }
    parts = slices(list(found.values()))
    assert all(0 < len(part) <= SLICE for part in parts)
    assert all(len({kernel.arithmetic for kernel in part}) == 1 for part in parts)
    assert sorted(kernel.key for part in parts for kernel in part) == sorted(found)
    assert parts[0][0] == next(iter(found.values()))


def test_other_processors_have_targets_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.machine() == "x86_64":
        here = DeviceTarget(2, 4)
        assert here.spec == "x86-ort?threads=2&batch=4"
        assert here.device_class == parse_target("x86-ort").device_class
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    device = DeviceTarget(2, 4)
    assert device.spec == "arm64-ort?threads=2&batch=4"
    assert device.device_class.startswith("arm64")
    assert device.can_measure
    assert isinstance(device, Target)
    assert LatencyTable.empty(device).target == device.spec
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert DeviceTarget().name == "riscv64-ort"


def test_arm_processors_are_told_apart() -> None:
    core = (
        "processor\t: {}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: {}\n"
    )
    text = f"{core.format(0, '0xd05')}\n{core.format(1, '0xd0b')}\nHardware\t: Some Board\n"
    model, flags = cpu_info(text, "Some Board Rev 2")
    assert model == "Some Board Rev 2, ARM core 0x41-0xd05, ARM core 0x41-0xd0b"
    assert flags == {"fp", "asimd", "asimddp"}
    x86 = "model name\t: X\ncpu family\t: 6\nmodel\t: 1\nstepping\t: 2\nflags\t: avx2 fma\n\n"
    assert cpu_info(x86) == ("X (6-1-2)", frozenset({"avx2", "fma"}))
    assert cpu_info("")[0]


def test_the_first_interrupt_is_a_wish() -> None:
    # As under nohup, where a closed connection must not end it.
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.wanted
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupts.wanted
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(signal.SIGINT, interrupt)


def test_progress_says_what_is_left() -> None:
    seconds = iter([0.0, 3.0, 20.0, 40.0])
    stream = io.StringIO()
    progress = KitProgress(stream, lambda: next(seconds))
    for done in (4, 5, 6, 8):
        progress.show("step", done, 8)
    assert stream.getvalue().splitlines() == ["step  4/8", "step  6/8  20 s left", "step  8/8"]


def test_a_kit_needs_a_free_folder_and_onnx_runtime(kit: Path, tmp_path: Path) -> None:
    target: Any = SimpleNamespace(name="cuda-torch")
    with pytest.raises(TargetError, match="ONNX Runtime, not cuda-torch"):
        make_kit(SOURCE, SOURCES, SHAPE, target, tmp_path / "new", quiet)
    with pytest.raises(TargetError, match="is there already"):
        make_kit(SOURCE, SOURCES, SHAPE, parse_target("x86-ort"), kit, quiet)
    assert cli.main([*DIGITS, "--kit", str(kit)]) == 2


@pytest.mark.slow
def test_the_command_writes_a_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path / "state"))
    folder = tmp_path / "kits" / "digits"
    spec = "x86-ort?threads=2&batch=3"
    assert cli.main([*DIGITS, "--target", spec, "--kit", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    plan = KitPlan.load(folder)
    assert (plan.threads, plan.batch, plan.input_shape) == (2, 3, (1, 8, 8))
    assert document["networks"] == len(plan.networks) > 200
    assert document["timed_networks"] == 24
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]
    assert parse_target(spec).kernels(plan.bytes_of(folder, plan.networks[0]))
