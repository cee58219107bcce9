"""Checking finished files: a packed file must hold the very network of the exported one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from compressors import Choices, Compressor, prepare
from compressors.exporter import export_onnx, save_onnx
from compressors.packed import PACKED_FILE, pack_network
from compressors.training_images import TensorImages
from latency_tables import parse_target
from tests.networks import SHAPE, PadResNet, randomized

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.verify_artifacts import packed_facts  # noqa: E402


def test_a_packed_file_of_another_network_is_told(tmp_path: Path) -> None:
    original = prepare(randomized(PadResNet()))
    images = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(2))
    compressor = Compressor(original, images, [])
    layers = frozenset(layer.path for layer in compressor.structure.layers)
    made, other = (
        compressor.compress(Choices(integer=layers, weight_bits=dict.fromkeys(layers, bits)))
        for bits in (4, 3)
    )
    save_onnx(export_onnx(made.network, made.plan), tmp_path / "model.onnx")
    packed, test = tmp_path / PACKED_FILE, TensorImages(images, torch.zeros(32, dtype=torch.int64))
    target = parse_target("x86-ort")
    packed.write_bytes(pack_network(made.network, made.plan))
    found = packed_facts(packed, original, target, test, tmp_path)
    assert found["images_that_differ"] == 0
    raw = 4 * sum(p.numel() for p in compressor.folded.parameters())
    assert found["raw_weight_bytes"] == raw
    assert found["times_smaller"] * packed.stat().st_size == raw
    packed.write_bytes(pack_network(other.network, other.plan))
    assert packed_facts(packed, original, target, test, tmp_path)["images_that_differ"] > 0
