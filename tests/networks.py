"""Small networks with the shapes that break compressors: what a user might bring, in miniature."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
ZOO = SHARED / "zoo"
needs_zoo = pytest.mark.skipif(
    not ZOO.is_dir(), reason="needs the zoo of trained networks beside the checkout"
)


def zoo(name: str) -> nn.Module:
    """A network of the zoo with random weights."""
    if str(ZOO) not in sys.path:
        sys.path.append(str(ZOO))
    import cifar_zoo

    network: nn.Module = getattr(cifar_zoo, name)()
    return network


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and batch-norm statistics: fresh norms are all but identities and hide mistakes."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


class PadBlock(nn.Module):
    """Residual block with a slice-and-pad shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class PadResNet(nn.Module):
    """Input [N, 3, 16, 16], 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(PadBlock(16, 16, 1), PadBlock(16, 32, 2), PadBlock(32, 32, 1))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """Inverted residual with in-place ReLU6 and a prunable stream."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True), nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def mobile() -> nn.Module:
    """Input [N, 3, 16, 16], 5 classes; the root is a Sequential with numbers for names."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
        Inverted(16, 48), Inverted(16, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def pooled() -> nn.Module:
    """A plain chain with max pooling and a flatten over several positions."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32),
        nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32 * 4, 5),
    )  # fmt: skip


SHAPE = (3, 16, 16)
SMALL = {"pad_resnet": PadResNet, "mobile": mobile, "pooled": pooled}
