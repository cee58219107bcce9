"""Products of matrices are counted wherever they are made, and for one example whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compressors import prepare
from compressors.call_graph import record
from compressors.structure import analyse, example_input
from tests.compressors.channel_networks import NETWORKS
from tests.networks import SHAPE, randomized


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (lambda q, k, v: q @ k.transpose(-2, -1), 2 * 3 * 5 * 7 * 4),
        (lambda q, k, v: torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT), 2 * 3 * 5 * 7 * 4),
        (
            lambda q, k, v: torch.baddbmm(torch.ones(6, 5, 7), q.flatten(0, 1), k.flatten(0, 1).mT),
            2 * 3 * 5 * 7 * 4,
        ),
        (lambda q, k, v: torch.einsum("bhqc,bhkc->bhqk", q, k), 2 * 3 * 5 * 7 * 4),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), 2 * 3 * 5 * 7 * (4 + 6)),
        (lambda q, k, v: torch.matmul(q, other=k.mT), 2 * 3 * 5 * 7 * 4),
        (lambda q, k, v: q.matmul(other=k.mT), 2 * 3 * 5 * 7 * 4),
        (
            lambda q, k, v: torch.bmm(input=q.flatten(0, 1), mat2=k.flatten(0, 1).mT),
            2 * 3 * 5 * 7 * 4,
        ),
        (
            lambda q, k, v: torch.baddbmm(
                torch.ones(6, 5, 7), batch2=k.flatten(0, 1).mT, batch1=q.flatten(0, 1)
            ),
            2 * 3 * 5 * 7 * 4,
        ),
        (lambda q, k, v: torch.einsum("bhqc,bhkc->bhqk", [q, k]), 2 * 3 * 5 * 7 * 4),
        (
            lambda q, k, v: F.scaled_dot_product_attention(value=v, key=k, query=q),
            2 * 3 * 5 * 7 * (4 + 6),
        ),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, value=v, attn_mask=None),
            2 * 3 * 5 * 7 * (4 + 6),
        ),
        (lambda q, k, v: torch.einsum("...c->...", q), 0),
        (lambda q, k, v: q * 2 + v.mean(), 0),
    ],
)
def test_every_kind_of_product_is_counted(
    product: Callable[[Tensor, Tensor, Tensor], Tensor], expected: int
) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x[..., :5, :4]
            return product(q, x[..., :4], x[..., :6])

    graph = record(Network().eval(), torch.randn(2, 3, 7, 8))
    assert sum(call.macs for call in graph.calls) == expected


@pytest.mark.parametrize("name", ["transformer", "fused", "torch_encoder", "windows", "covariance"])
def test_counts_are_those_of_one_example(name: str) -> None:
    network = prepare(randomized(NETWORKS[name][0]()))
    two, five = (analyse(network, example_input(SHAPE, batch)) for batch in (2, 5))
    assert [layer.macs for layer in two.layers] == [layer.macs for layer in five.layers]
    assert two.products == five.products
    assert {product.macs > 0 for product in two.products} == {True}
