"""The demo's network: a small residual network for scikit-learn's digits, trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.datasets import ArrayDataset, digits

__all__ = ["DigitsNetwork", "digits_cnn", "train_digits_cnn"]

_EPOCHS = 8
_BATCH = 64


class _Residual(nn.Module):
    """Two 3x3 convolutions beside an identity shortcut (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + x)


class DigitsNetwork(nn.Module):
    """Six convolutions, two droppable residual blocks. Input [N, 1, 8, 8], logits [N, 10]."""

    def __init__(self, width: int = 48, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.block1 = _Residual(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_bn = nn.BatchNorm2d(2 * width)
        self.block2 = _Residual(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_bn(self.stem(x)))
        x = self.block1(x)
        x = functional.relu(self.down_bn(self.down(x)))
        x = self.block2(x)
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.head(x)
        return logits


def digits_cnn() -> DigitsNetwork:
    """The demo's network with random weights: ``python:service.demo_networks:digits_cnn``."""
    return DigitsNetwork()


def train_digits_cnn(
    path: Path, *, seed: int = 0, report: Callable[[int, int], None] | None = None
) -> float:
    """Trains the demo's network on the digits' train split and saves it as safetensors.

    Args:
        path: file to write.
        seed: of the weights and of the order of the images; torch's global generator is left alone.
        report: called with (epochs done, epochs in all).

    Returns:
        Share of the digits' test split it classifies rightly.
    """
    from safetensors.torch import save_file

    bundle = digits()
    train, test = bundle.train, bundle.test
    if not isinstance(train, ArrayDataset) or not isinstance(test, ArrayDataset):
        raise TypeError("the digits are held in memory")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = digits_cnn()
        _fit(network, train, report)
    with torch.inference_mode():
        right = network(test.images).argmax(1) == torch.tensor(test.targets)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(path))
    return float(right.float().mean())


def _fit(
    network: nn.Module, train: ArrayDataset, report: Callable[[int, int], None] | None
) -> None:
    labels = torch.tensor(train.targets)
    steps = _EPOCHS * -(-len(labels) // _BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    network.train()
    for epoch in range(_EPOCHS):
        order = torch.randperm(len(labels))
        for start in range(0, len(labels), _BATCH):
            chosen = order[start : start + _BATCH]
            loss = functional.cross_entropy(network(train.images[chosen]), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        if report is not None:
            report(epoch + 1, _EPOCHS)
    network.eval()
