"""Adaptive pooling to any number of bins is in the file what it is in torch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compressors import Compressor, ExportError, Plan, Skeleton, find_groups, prepare
from compressors.adaptive_pooling import pooling_matrix
from compressors.compressor import Choices
from compressors.exporter import export_onnx
from compressors.structure import example_input
from latency_tables import parse_target
from tests.compressors.channel_networks import conv
from tests.networks import SHAPE, randomized

TARGET = parse_target("x86-ort")


@pytest.mark.parametrize(
    ("size", "bins", "operator"),
    [
        ((2, 2), (7, 7), "MatMul"),
        ((5, 9), (3, 4), "MatMul"),
        ((7, 5), (None, 3), "MatMul"),
        ((1, 3), (4, 1), "MatMul"),
        ((6, 6), (3, 2), "AveragePool"),
        ((3, 4), (1, 1), "GlobalAveragePool"),
    ],
)
def test_the_file_pools_as_torch_does(
    size: tuple[int, int], bins: tuple[int | None, int], operator: str
) -> None:
    network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(bins)).eval()
    x = torch.randn(2, 3, *size)
    model = export_onnx(network, Plan(input_shape=(3, *size)), batch=2)
    assert operator in {node.op_type for node in model.graph.node}
    found = TARGET.run(model.SerializeToString(), x.numpy())
    np.testing.assert_allclose(found, network(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("positions", range(1, 9))
@pytest.mark.parametrize("bins", [1, 2, 3, 7])
def test_a_matrix_is_the_pooling_of_one_axis(positions: int, bins: int) -> None:
    matrix = pooling_matrix(positions, bins)
    x = torch.randn(5, positions)
    torch.testing.assert_close(x @ matrix.T, F.adaptive_avg_pool1d(x, bins))
    torch.testing.assert_close(matrix.sum(1), torch.ones(bins))


def vgg() -> nn.Module:
    """Pools 2 x 2 positions to 3 x 3 before its linear layers."""
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.MaxPool2d(8),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(16 * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


def test_what_lies_around_it_is_pruned_and_cut_from_the_graph() -> None:
    network = prepare(randomized(vgg()))
    x = example_input(SHAPE, 8)
    groups, _ = find_groups(network, x)
    assert {g.root: g.channels for g in groups} == {"0": 16, "5": 24}
    compressor = Compressor(network, x, groups)
    choices = Choices({"0": 8, "5": 12})
    made = compressor.compress(choices)
    file = export_onnx(made.network, made.plan).SerializeToString()
    expected = made.network(x[:1]).numpy()
    np.testing.assert_allclose(
        TARGET.run(file, x[:1].numpy()), expected, atol=1e-4 * np.abs(expected).max()
    )
    cut = TARGET.kernels(Skeleton(compressor).model(choices).SerializeToString())
    keys = Counter(use.kernel.key for use in cut)
    assert keys == Counter(use.kernel.key for use in TARGET.kernels(file))


def test_other_files_of_the_process_are_written_as_before() -> None:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2)).eval()
    export_onnx(pool, Plan(input_shape=(3, 3, 3)))
    with pytest.raises(torch.onnx.errors.SymbolicValueError):
        torch.onnx.export(pool, (torch.zeros(1, 3, 3, 3),), "/dev/null", dynamo=False)


def test_a_file_with_bins_that_pooling_cannot_have_is_refused() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = torch.masked_select(x, x > -1).view(1, 1, 1, -1)
            return F.adaptive_avg_pool2d(kept, (1, 2))

    with pytest.raises(ExportError, match="unknown size"):
        export_onnx(Dynamic(), Plan(input_shape=(1, 4, 4)))
