from __future__ import annotations

import platform

import pytest

from latency_tables import (
    HostFingerprint,
    MeasurementError,
    TableError,
    Target,
    TargetError,
    known_targets,
    parse_target,
)
from latency_tables.contract import TargetContract
from latency_tables.ort import OrtTarget


class TestOrt(TargetContract):
    def target(self) -> Target:
        return parse_target("x86-ort?batch=2")


def test_defaults_and_options() -> None:
    assert parse_target("x86-ort").spec == "x86-ort?threads=1&batch=1"
    target = parse_target("x86-ort?batch=8&threads=2")
    assert (target.threads, target.batch) == (2, 8)
    assert target.spec == "x86-ort?threads=2&batch=8"
    assert target.precisions == (8, 32)
    assert target.artifact_name == "model.onnx"
    assert [target.channel_step(n) for n in (3, 16, 17, 64)] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x86-what", "known: .*x86-ort"),
        ("", "known"),
        ("x86-ort?speed=2", "known: threads, batch"),
        ("x86-ort?threads=0", "threads"),
        ("x86-ort?threads=-1", "threads"),
        ("x86-ort?batch=two", "batch"),
        ("x86-ort?batch=1.5", "batch"),
        ("x86-ort?batch=", "batch"),
        ("x86-ort?batch=99999999999", "batch"),
        ("x86-ort?batch=1&batch=2", "twice"),
        ("x86-ort?batch", "options"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        parse_target(text)


def test_known_targets() -> None:
    assert "x86-ort" in known_targets()


def test_another_machine_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    target = OrtTarget()
    assert not target.can_measure
    with pytest.raises(MeasurementError, match="aarch64"):
        target.measure_kernels([])


def test_fingerprint() -> None:
    here = HostFingerprint.here()
    assert here.runtime.startswith("onnxruntime 1")
    assert here.cores >= 1
    assert list(here.flags) == sorted(here.flags)
    assert HostFingerprint.from_json(here.to_json()) == here
    assert len(here.digest) == 12
    other = HostFingerprint("Z80", (), 1, "onnxruntime 1.0", "CP/M")
    assert other.digest != here.digest
    assert not other.has_vnni
    assert HostFingerprint("x", ("avx_vnni",), 1, "r", "o").has_vnni
    with pytest.raises(TableError, match="fingerprint"):
        HostFingerprint.from_json({"processor": "x"})
    assert HostFingerprint.here("no-such-package").runtime == "no-such-package absent"
