"""Small networks, one for each way in which channels hang together. Input [N, 3, 16, 16], 5 classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers.grn import GlobalResponseNorm
from timm.models.xcit import XCA
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


def grouped() -> nn.Module:
    """A bottleneck of ResNeXt: four groups of four."""
    return nn.Sequential(
        conv(3, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 16, groups=4),
        nn.ReLU(),
        conv(16, 8),
        Head(8),
    )


def multiplied() -> nn.Module:
    """A depthwise convolution that makes two channels of each."""
    return nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 16, groups=8), nn.ReLU(), conv(16, 8), Head(8)
    )


class Squeeze(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up, self.head = (
            conv(3, 16),
            conv(16, 4, 1),
            conv(4, 16, 1),
            Head(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x * gate)


class Shuffle(nn.Module):
    """Half the channels pass by, the other half is convolved, then both are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.last, self.head = conv(3, 16), conv(8, 8), conv(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([left, F.relu(self.branch(right))], dim=1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(self.last(x)))


class Widths(nn.Module):
    """Splits by a width that the module holds, and scales by a parameter of a shape that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.shape = 4, (16, 1, 1)
        self.stem, self.branch, self.last, self.head = conv(3, 16), conv(4, 4), conv(16, 8), Head(8)
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)) * self.scale.view(self.shape)
        first, *others = torch.split(x, self.width, 1)
        return self.head(F.relu(self.last(torch.cat([F.relu(self.branch(first)), *others], 1))))


class Dense(nn.Module):
    """Concatenation, with the norm before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv(3, 8), conv(8, 4), conv(12, 4)
        self.norm, self.head = nn.BatchNorm2d(12), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(F.relu(x))], 1)
        return self.head(torch.cat([x, self.second(F.relu(self.norm(x)))], 1))


class Standardised(nn.Module):
    """A convolution whose weight is standardised by each run."""

    class Conv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = F.batch_norm(
                self.weight.reshape(1, self.out_channels, -1), None, None, training=True
            )
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = self.Conv(3, 16, 3), nn.GroupNorm(4, 16)
        self.last, self.head = conv(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(F.relu(self.norm(self.stem(x))))))


class Mixer(nn.Module):
    """Tokens and channels are mixed in turn, behind a residual stream of width 12."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.norm, self.tokens, self.tokens2 = (
            nn.LayerNorm(12),
            nn.Linear(16, 24),
            nn.Linear(24, 16),
        )
        self.hidden, self.out, self.fc = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens2(F.gelu(self.tokens(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.out(F.gelu(self.hidden(x)))
        return self.fc(x.mean(1))


class Attention(nn.Module):
    """Self attention with a bias for each head."""

    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fused = heads, 4, heads * 4, fused
        self.qkv, self.proj = nn.Linear(dim, 3 * heads * 4), nn.Linear(heads * 4, dim)
        self.bias = nn.Parameter(torch.randn(heads, 17, 17))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.unsqueeze(0))
        else:
            x = (q @ k.transpose(-2, -1) / 2 + self.bias).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, self.attn_dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, fused)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 24), nn.Linear(24, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.gamma * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Class token, position embedding, layer scale; three heads, so that a head count equals the 3 of qkv."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(Block(16, 3, fused), Block(16, 3, fused))
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.fc(self.norm(self.blocks(x))[:, 0])


def fused() -> nn.Module:
    return Transformer(fused=True)


class TorchEncoder(nn.Module):
    """torch's own transformer layers, and a stream whose width the network reshapes by."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.patches = 12, nn.Conv2d(3, 12, 4, 4)
        layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attn, self.fc = nn.MultiheadAttention(12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).reshape(len(x), self.width, 16).permute(0, 2, 1)
        x = self.encoder(x).transpose(0, 1)
        attended, _ = self.attn(x, x, x)
        return self.fc((x + attended).mean(0))


class Windows(nn.Module):
    """Attention within windows of a padded map, of Swin and of its second version."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 3)
        self.first = ShiftedWindowAttention(12, [4, 4], [2, 2], 3)
        self.second = ShiftedWindowAttentionV2(12, [4, 4], [0, 2], 3)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.first(x)
        x = x + self.second(x)
        return self.fc(x.mean((1, 2)))


class Covariance(nn.Module):
    """Attention of channels to channels, and a hidden layer behind a norm over its responses."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attn = nn.Conv2d(3, 12, 4, 4), XCA(12, 3)
        self.hidden, self.norm = nn.Linear(12, 20), GlobalResponseNorm(20)
        self.out, self.fc = nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attn(x)
        hidden = F.gelu(self.hidden(x)).unflatten(1, (4, 4))
        return self.fc((x + self.out(self.norm(hidden).flatten(1, 2))).mean(1))


# Name to the factory and to the channels of every group that must be found.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "grouped": (grouped, {"0": 4, "5": 8}),
    "multiplied": (multiplied, {"0": 8, "4": 8}),
    "squeeze": (Squeeze, {"stem": 16, "down": 4}),
    "shuffle": (Shuffle, {"stem": 8, "last": 8}),
    "widths": (Widths, {"stem": 4, "branch": 4, "last": 8}),
    "dense": (Dense, {"stem": 8, "first": 4, "second": 4}),
    "standardised": (Standardised, {"stem": 4, "last": 8}),
    "mixer": (Mixer, {"patches": 12, "tokens": 24, "hidden": 20}),
    "transformer": (
        Transformer,
        {"patches": 16} | {f"blocks.{k}.{p}": n for k in (0, 1) for p, n in (("attn.qkv", 3), ("fc1", 24))},
    ),
    "fused": (
        fused,
        {"patches": 16} | {f"blocks.{k}.{p}": n for k in (0, 1) for p, n in (("attn.qkv", 3), ("fc1", 24))},
    ),
    "torch_encoder": (
        TorchEncoder,
        {"patches": 12, "attn.in_proj": 3}
        | {f"encoder.layers.{k}.{p}": n for k in (0, 1) for p, n in (("self_attn.in_proj", 3), ("linear1", 24))},
    ),
    "windows": (Windows, {"stem": 12, "first.qkv": 3, "second.qkv": 3, "second.cpb_mlp.0": 512}),
    "covariance": (Covariance, {"patches": 12, "attn.qkv": 3, "hidden": 20}),
}  # fmt: skip
