"""What runs in a policy's stead: the exported file in ONNX Runtime, and the quantizers that imitate it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressors import ActivationScale, Compressor, ExportedNetwork, ExportError, Plan
from compressors.call_graph import INPUT_SITE
from compressors.compressor import Choices
from compressors.exported import runs_integers
from compressors.exporter import export_onnx, save_onnx
from compressors.plan import WeightScale
from compressors.quantization import QuantizedNetwork
from compressors.structure import example_input
from latency_tables import HostFingerprint, parse_target
from tests.compressors.test_export import choices_of, compressor_of
from tests.networks import SHAPE, SMALL


def everything(compressor: Compressor) -> Choices:
    return Choices(integer=frozenset(layer.path for layer in compressor.structure.layers))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("which", ["float", "integer", "mixed"])
def test_it_computes_what_the_file_computes(name: str, which: str, tmp_path: Path) -> None:
    compressor = compressor_of(name)
    choices = {
        "float": Choices(),
        "integer": everything(compressor),
        "mixed": choices_of(compressor, 1),
    }[which]
    made = compressor.compress(choices)
    file = tmp_path / "model.onnx"
    save_onnx(export_onnx(made.network, made.plan), file)
    x = example_input(SHAPE, 21)  # no multiple of the batch
    expected = parse_target("x86-ort").run(file, x.numpy())
    found = ExportedNetwork(made.network, made.plan)(x).numpy()
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    if which == "float":
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    else:
        # A float node between may sum in another order for another batch, and flip a rounding.
        assert np.median(np.abs(found - expected)) < 1e-3 * scale
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


@pytest.mark.parametrize("name", SMALL)
def test_without_integers_it_is_fake_quantization(name: str) -> None:
    compressor = compressor_of(name)
    made = compressor.compress(everything(compressor))
    x = example_input(SHAPE, 64)
    with torch.no_grad():
        expected = made.runnable()(x)
    found = ExportedNetwork(made.network, made.plan, integers=False)(x)
    assert float((found - expected).abs().median()) < 0.01 * float(expected.abs().max())
    assert float((found.argmax(1) == expected.argmax(1)).float().mean()) >= 0.95


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("scale", [0.125, 0.1, 6 / 255, 1e-3])
def test_fake_quantization_rounds_as_the_runtime_does(scale: float, zero_point: int) -> None:
    step = np.float32(scale)
    # Every level, every tie between two, their neighbours in float32, and what lies beyond the ends.
    halves = np.arange(-600, 601, dtype=np.float32) / 2 * step
    beside = [np.nextafter(halves, np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([halves, *beside, np.float32([-1e6, 1e6, -0.0])]).astype(np.float32)
    low, high = -zero_point, 255 - zero_point
    expected = np.rint(x / step).clip(low, high) * step
    plan = Plan(
        activations={INPUT_SITE: ActivationScale(float(step), zero_point)}, input_shape=(len(x),)
    )
    given = torch.from_numpy(x)[None]
    quantized = QuantizedNetwork(nn.Identity(), plan.activations)(given)
    np.testing.assert_array_equal(quantized[0].numpy(), expected)
    np.testing.assert_array_equal(given[0].numpy(), x)  # the caller's tensor is not written to
    for integers in (True, False):
        ran = ExportedNetwork(nn.Identity(), plan, batch=1, integers=integers)(given)
        np.testing.assert_array_equal(ran[0].numpy(), expected)


def test_integers_run_only_where_they_do_not_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    here = HostFingerprint.here()
    wide, held = (Plan(weights={"a": WeightScale((0.1,), limit=limit)}) for limit in (127, 63))
    for flags, expected in [(("avx2",), False), (("avx2", "avx512_vnni"), True)]:
        monkeypatch.setattr(
            HostFingerprint, "here", staticmethod(lambda flags=flags: replace(here, flags=flags))
        )
        assert runs_integers(wide) is expected
        assert runs_integers(held) and runs_integers(Plan())


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.erfcx(x)


def test_what_cannot_run_is_an_export_error() -> None:
    plan = Plan(input_shape=(4,))
    with pytest.raises(ExportError, match="cannot be exported"):
        ExportedNetwork(Inverse(), plan)
    with pytest.raises(ExportError, match=r"takes inputs \[4\], given \[5\]"):
        ExportedNetwork(nn.Identity(), plan)(torch.zeros(3, 5))
    with pytest.raises(ExportError, match="for 8 examples"):
        ExportedNetwork(Sums(), plan)(torch.zeros(3, 4))
