"""The doctor: every line says what is there and what follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latency_tables.host import HostFingerprint
from service import cli, doctor


def host(*flags: str, machine: str = "Linux x86_64") -> HostFingerprint:
    return HostFingerprint("Some Processor", tuple(sorted(flags)), 2, "onnxruntime 1", machine)


def by_topic(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.topic: finding for finding in findings}


def test_instruction_sets() -> None:
    found = by_topic(doctor.instructions(host("avx2", "avx512f", "avx512_vnni")))
    assert [found[t].state for t in ("avx2", "avx512", "vnni", "amx")] == ["ok"] * 3 + ["missing"]
    plain = by_topic(doctor.instructions(host("avx2")))
    assert "7 bits" in plain["vnni"].meaning
    assert by_topic(doctor.instructions(host(machine="Linux aarch64")))["processor"].state == (
        "missing"
    )


def test_energy_counters(tmp_path: Path) -> None:
    absent = doctor.energy(tmp_path / "absent")
    assert absent.state == "missing" and "no energy counter" in absent.found
    counter = tmp_path / "intel-rapl:0"
    counter.mkdir()
    (counter / "name").write_text("package-0\n")
    (counter / "max_energy_range_uj").write_text("262143328850\n")
    (counter / "energy_uj").write_text("12345\n")
    there = doctor.energy(tmp_path)
    assert there.state == "ok" and there.found == "RAPL package-0"
    (counter / "energy_uj").write_text("?")
    assert "cannot be read" in doctor.energy(tmp_path).found


def test_timing_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda seconds: [1.0, 1.01, 1.0, 1.02])
    assert doctor.timing().state == "ok"
    monkeypatch.setattr(doctor, "_probe", lambda seconds: [1.0, 2.0, 1.0, 3.0])
    assert doctor.timing().state == "warning"


def test_the_probe_takes_as_long_as_it_says() -> None:
    assert len(doctor._probe(0.05)) >= 5


def test_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.sqlite3'}"
    assert doctor.database(url).found.endswith("(new)")
    assert not (tmp_path / "new.sqlite3").exists()
    (tmp_path / "new.sqlite3").touch()
    assert doctor.database(url).state == "ok"
    assert doctor.database("nonsense").state == "missing"
    (tmp_path / "no.sqlite3").write_text("not a database, but long enough to be read as one" * 20)
    assert doctor.database(f"sqlite:///{tmp_path / 'no.sqlite3'}").state == "missing"
    refused = doctor.database("postgresql+psycopg://u:secret@127.0.0.1:9/x")
    assert refused.state == "missing"
    assert "secret" not in refused.found


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk(tmp_path / "a" / "b").state in ("ok", "warning")
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "TRIMTAB_DATA_DIR" in doctor.disk(tmp_path).meaning


def test_a_runtime_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_topic(doctor.runtimes())
    assert found["onnxruntime"].state == "ok"
    assert found["python"].state == "ok"

    def absent(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", absent)
    assert by_topic(doctor.runtimes())["ray"].state == "missing"


def test_no_gpu_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.gpu().found == "nvidia-ml-py is not installed"


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "_probe", lambda seconds: [1.0, 1.0])
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "missing", "warning") for line in lines)
    topics = {line.split()[1].rstrip(":") for line in lines}
    assert {"cores", "timing", "gpu", "energy", "ray", "database", "disk"} <= topics
    assert cli.main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {f["topic"] for f in document["findings"]} == topics
