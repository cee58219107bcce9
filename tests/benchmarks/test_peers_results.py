"""Answers of peers on disk, their environments, and the table that sets Trimtab beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latency_tables import Latency, Measurements
from tests.networks import ZOO, needs_zoo, zoo

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks.peers import environments  # noqa: E402
from benchmarks.peers.answers import (  # noqa: E402
    ANSWER_FILE,
    Answer,
    Kind,
    read_network,
    write_network,
)
from benchmarks.peers.assignment import Assignment, accuracy_of, write_images  # noqa: E402
from benchmarks.peers.compete import Entry  # noqa: E402
from benchmarks.peers.registry import PEERS, Peer, peer_of  # noqa: E402
from benchmarks.peers.results import ordered, rows_of, table  # noqa: E402
from benchmarks.peers.torch_pruning import outer_convolutions, runs  # noqa: E402

ANSWER = Answer(
    "MCT", "2.6.1", "mixed precision", Kind.BITS, {"weights_memory": 0.5}, 0.9, 3, 200, 12.5,
    bits={"conv1": 4}, notes=("one",),
)  # fmt: skip


def test_an_answer_survives_the_disk(tmp_path: Path) -> None:
    ANSWER.write(tmp_path / "mct_bits-0.5")
    assert Answer.read(tmp_path / "mct_bits-0.5") == ANSWER


@pytest.mark.parametrize("change", [{"kind": "wishes"}, {"bits": None, "colour": 3}])
def test_a_malformed_answer_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    ANSWER.write(tmp_path)
    file = tmp_path / ANSWER_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match="no answer of a peer"):
        Answer.read(tmp_path)


@needs_zoo
def test_an_assignment_gives_the_trained_network_and_its_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 3, 32, 32, generator=generator)
    images, model = tmp_path / "images.safetensors", tmp_path / "model.onnx"
    write_images(images, inputs[:4], inputs, torch.arange(6))
    made = Assignment("resnet20", ZOO, images, model, seed=7)
    read = Assignment.read(made.write(tmp_path))
    assert read == made
    assert torch.equal(read.calibration(), inputs[:4])
    some, targets = read.search(5)
    assert torch.equal(some, inputs[:5]) and targets.tolist() == [0, 1, 2, 3, 4]
    network = read.original()
    with torch.no_grad():
        guesses = network(inputs).argmax(1)
    assert accuracy_of(network, inputs, guesses) == 1.0
    assert accuracy_of(network, inputs, (guesses + 1) % 10) == 0.0
    write_network(network, read, tmp_path / "answer")
    state, outputs = read_network(tmp_path / "answer")
    assert set(state) == set(network.state_dict())
    with torch.no_grad():
        assert torch.equal(outputs, network(inputs))


@needs_zoo
@pytest.mark.parametrize(("name", "inner"), [("resnet20", 9), ("mobilenet_v2", 33)])
def test_inner_widths_are_told_from_the_stream(name: str, inner: int) -> None:
    """Of ResNet-20 the first convolution of each block; of MobileNetV2 what expands and the depthwise one behind it
    (in the first block, which does not expand, the depthwise one alone)."""
    network = zoo(name)
    outer = {id(module) for module in outer_convolutions(network)}
    paths = [p for p, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    left = [p for p in paths if id(network.get_submodule(p)) not in outer]
    assert len(left) == inner
    if name == "resnet20":
        assert all(path.endswith(".conv1") for path in left)
    else:
        assert "features.2.conv.0.0" in left and "features.2.conv.2" not in left
        assert not {"features.0.0", "features.18.0"} & set(left)


@needs_zoo
def test_a_network_that_does_not_run_is_told() -> None:
    network, example = zoo("resnet20"), torch.zeros(1, 3, 32, 32)
    assert runs(network, example, zoo("resnet20"))
    broken = zoo("resnet20")
    broken.linear = nn.Linear(32, 10)
    assert not runs(broken, example, network)
    other = zoo("resnet20")
    other.linear = nn.Linear(64, 9)
    assert not runs(other, example, network)


def test_every_peer_has_a_module_and_exact_requirements() -> None:
    for peer in PEERS.values():
        assert (ROOT / "benchmarks" / "peers" / f"{peer.name}.py").is_file()
        lines = (environments.REQUIREMENTS / f"{peer.environment}.txt").read_text().split()
        assert lines and all(line.count("==") == 1 for line in lines)
        assert not any(line.lower().startswith(("torch==", "torchvision==")) for line in lines)
    assert peer_of("nncf_accuracy-0.001") == "nncf_accuracy"
    with pytest.raises(ValueError, match="no answer of a known peer"):
        peer_of("elsewhere-1")


def test_an_environment_has_what_it_lists_before_what_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = tmp_path / "requirements"
    lists.mkdir()
    (lists / "bare.txt").write_text("")
    monkeypatch.setattr(environments, "REQUIREMENTS", lists)
    monkeypatch.setenv("TRIMTAB_PEERS", str(tmp_path / "peers"))
    assert not environments.ready("bare")
    with pytest.raises(RuntimeError, match="environments bare"):
        environments.run(Peer("bare", "bare"), tmp_path, tmp_path, [], here=False)
    environments.make("bare")
    assert environments.ready("bare")
    code = "import sys, numpy; print(sys.prefix, numpy.__version__)"
    said = subprocess.run(
        [environments.interpreter("bare"), "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [str(tmp_path / "peers" / "bare"), np.__version__]
    (lists / "bare.txt").write_text("# changed\n")
    assert not environments.ready("bare")
    (lists / "bare.txt").write_text("./no-such-folder\n")
    with pytest.raises(RuntimeError, match="pip could not make"):
        environments.make("bare")
    assert not environments.ready("bare")


def entry(name: str, group: str, against: str = "", **facts: object) -> Entry:
    return Entry(name, against, group, "as it is", 1000, 0.9, facts)


ENTRIES = [
    entry("fp32", "reference"),
    entry("uniform int8", "reference"),
    entry("a-1", "a", answer="a-1", leads=True, evaluations=3, seconds=12.0),
    entry("a-1-refit", "a", answer="a-1"),
    entry("b-1", "b", answer="b-1", leads=True, evaluations=0, seconds=1.0),
    entry("ours-b", "trimtab", "b-1", evaluations=100, seconds={"all": 90.0}, workers=4),
    entry("ours-a", "trimtab", "a-1", evaluations=100, seconds={"all": 80.0}, workers=1),
]


def found() -> dict[str, object]:
    ms = dict(zip([e.name for e in ENTRIES], (2.0, 1.0, 0.8, 0.8, 1.0, 0.9, 0.4), strict=True))
    times = Measurements(
        {name: Latency(t, t, t, 30, (t, t)) for name, t in ms.items()},
        {name: (t, t, t) for name, t in ms.items()},
        100.0,
        (0.1, 0.1, 0.1),
        "now",
    )
    hits = {name: np.arange(100) < 90 for name in ms}
    hits["a-1"] = np.arange(100) < 60
    hits["ours-a"] = np.arange(100) < 80
    rows = rows_of(ENTRIES, times, hits, dict.fromkeys(ms, 4096))
    return {"network": "net", "test_images": 100, "waited": 0.0, "rows": rows}


def test_rows_hold_ratios_and_paired_differences() -> None:
    rows = {row["name"]: row for row in found()["rows"]}  # type: ignore[attr-defined]
    assert rows["a-1"]["of_uniform_int8"] == pytest.approx(0.8)
    assert rows["a-1"]["of_fp32"] == pytest.approx(0.4)
    assert rows["a-1"]["drop"]["estimate"] == pytest.approx(0.3)
    assert "gain" not in rows["a-1"] and "gain" not in rows["a-1-refit"]
    ours = rows["ours-a"]
    assert ours["of_peer"] == pytest.approx(0.5)
    assert ours["gain"]["estimate"] == pytest.approx(0.2)
    low, high = ours["gain"]["ci95"]
    # 20 of 100 pairs differ, all in one direction: a standard error of 0.0402.
    assert (low, high) == (pytest.approx(0.1212, abs=1e-3), pytest.approx(0.2788, abs=1e-3))
    assert rows["ours-b"]["gain"]["estimate"] == pytest.approx(0.0)
    assert rows["ours-a"]["below_uniform_int8"]["estimate"] == pytest.approx(0.1)


def test_ours_stand_behind_the_peer_they_were_searched_for() -> None:
    whole = found()
    names = [row["name"] for row in ordered(whole["rows"])]  # type: ignore[arg-type]
    assert names == ["fp32", "uniform int8", "a-1", "a-1-refit", "ours-a", "b-1", "ours-b"]
    text = table(whole)
    assert text.count("\n") == 1 + 1 + len(ENTRIES)
    line = next(line for line in text.splitlines() if line.startswith("| ours-a |"))
    assert "| 100, 80 |" in line and "20.00 (12.12 to 27.88)" in line
    assert "| 100, 90 on 4 threads |" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["environments", "nobody"], "no peer 'nobody'"),
        (["search", "mct_bits", "--zoo", "{}", "--work", "{}"], "no cifar_zoo.py"),
    ],
)
def test_what_is_asked_wrongly_is_told(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from benchmarks.peers.__main__ import main

    monkeypatch.setattr("sys.argv", ["peers", *(a.format(tmp_path) for a in arguments)])
    assert main() == 2
    assert said in capsys.readouterr().err
