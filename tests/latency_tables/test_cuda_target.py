from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from latency_tables import MeasurementError, Target, TargetError, known_targets, parse_target
from latency_tables.contract import TargetContract, small_network
from latency_tables.cuda import CudaTarget


class TestCuda(TargetContract):
    def target(self) -> Target:
        return parse_target("cuda-torch?batch=2")


@pytest.fixture
def bare() -> CudaTarget:
    """The target on a machine without a GPU."""
    target = CudaTarget()
    if target.can_measure:
        pytest.skip("needs a machine without an NVIDIA GPU")
    return target


def test_defaults_and_options() -> None:
    assert "cuda-torch" in known_targets()
    assert parse_target("cuda-torch").spec == "cuda-torch?batch=1"
    target = parse_target("cuda-torch?batch=32")
    assert (target.batch, target.threads) == (32, 1)
    assert target.artifact_name == "model.onnx"
    assert [target.channel_step(n) for n in (3, 16, 17, 64)] == [4, 8, 8, 8]


def test_offers_only_what_it_runs() -> None:
    # int8 convolutions would be dequantized and computed in floats.
    assert parse_target("cuda-torch").precisions == (32,)


@pytest.mark.parametrize("text", ["cuda-torch?threads=2", "cuda-torch?batch=0", "cuda-torch?x=1"])
def test_what_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        parse_target(text)
    with pytest.raises(TargetError, match="batch"):
        CudaTarget(0)


def test_without_a_gpu_measuring_says_what_to_do(bare: CudaTarget, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_network(1))
    kernels = [use.kernel for use in bare.kernels(path)]
    for call in (
        lambda: bare.measure({"a": path}),
        lambda: bare.measure_kernels(kernels),
        lambda: bare.run(path, np.zeros((1, 3, 8, 8), np.float32)),
        bare.meter,
    ):
        with pytest.raises(MeasurementError, match="machine with an NVIDIA GPU"):
            call()


def test_without_a_gpu_it_is_still_a_target(bare: CudaTarget) -> None:
    assert bare.device_class == "cuda"
    assert bare.host().processor == "no NVIDIA GPU"
    assert bare.host().runtime.startswith("torch ")


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("latency_tables.cuda_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    target = parse_target("cuda-torch")
    assert not target.can_measure
    with pytest.raises(TargetError, match="pip install torch"):
        target.kernels(small_network(1))
    with pytest.raises(MeasurementError, match="PyTorch"):
        target.measure({})
