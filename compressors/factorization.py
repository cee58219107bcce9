"""Fills a factored layer: the best factors of a weight, or of what the layer computes on given inputs.

Plain factors minimise ``|W - W'|``, the error of the weight. Inputs have few directions of large variance, and an
error along the others costs nothing, so factors fitted to inputs minimise the error of the output instead,

    min E |W x + b - (W' x + b')|^2  over  rank(W') <= r  and  b'.

The bias that is left takes the mean, ``b' = b + (W - W') E[x]``, and with ``C`` the covariance of the inputs the rest
is ``|(W - W') C^(1/2)|``: by Eckart and Young ``W' = U U^T W`` with ``U`` the first eigenvectors of ``W C W^T``, the
covariance of the outputs (Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and
Detection", arXiv 1505.06798, eq. 7). With ``C = I`` this is the truncated SVD.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors.errors import PruningError
from compressors.least_squares import least_change
from compressors.low_rank import Ranks, positions, shell
from compressors.patches import patches

# What is added to the inputs' variances, relative to their mean: directions that no image showed still count.
RIDGE = 1e-3
# Sweeps of the orthogonal iteration after its start by SVD; a fourth changes the error in the fourth digit.
SWEEPS = 3
# Components are scaled alike down to this share of the largest.
_FLOOR = 1e-3
# Numbers in one matrix of sampled inputs, 4 bytes each.
_LARGEST_SAMPLE = 2**25


def factorize(
    layer: nn.Conv2d | nn.Linear, ranks: Ranks, inputs: Tensor | None = None, places: int = 24
) -> nn.Sequential:
    """The layer as factors of the given ranks.

    Args:
        layer: one that ``low_rank.factorable`` admits; not changed.
        ranks: (r,) or (r_in, r_out), see ``low_rank``.
        inputs: float [n, C, H, W] or [n, ..., features], what reaches the layer; None for plain factors.
        places: output positions an image that are looked at.

    Raises:
        PruningError: the ranks do not fit the layer, or its weights are not finite.
    """
    made = shell(layer, ranks)
    if not torch.isfinite(layer.weight).all():
        raise PruningError("a layer whose weights are not finite has no low-rank form")
    with torch.no_grad():
        sample = None if inputs is None else _sample(layer, inputs.detach(), places)
        if positions(layer) == 1:
            _fill_pair(made, layer, ranks, sample)
        else:
            _fill_core(made, layer, ranks, sample, inputs)
    return made


def compose(factored: nn.Sequential) -> Tensor:
    """The weight that the factors multiply to, of the whole layer's shape."""
    first, *middle, last = [tensor.detach() for tensor in _weights(factored)]
    if not isinstance(factored[0], nn.Conv2d):
        return torch.as_tensor(last @ first)
    outer, inner = last[:, :, 0, 0], first[:, :, 0, 0]
    if not middle:
        return (outer @ inner)[:, :, None, None]
    return torch.einsum("or,rshw,si->oihw", outer, middle[0], inner)


def _weights(factored: nn.Sequential) -> list[Tensor]:
    return [part.weight for part in factored if isinstance(part, nn.Conv2d | nn.Linear)]


def _fill_pair(
    made: nn.Sequential, layer: nn.Conv2d | nn.Linear, ranks: Ranks, sample: _Sample | None
) -> None:
    """Truncated SVD, weighted by the inputs' covariance where there are some."""
    weight = layer.weight.detach().flatten(1)
    covariance = None if sample is None else _covariance(sample.centred)
    first, last = _truncate(weight, ranks[0], covariance)
    shift = None if sample is None else (weight - last @ first) @ sample.mean
    _set(made, [first, last], layer.bias, shift)


def _fill_core(
    made: nn.Sequential,
    layer: nn.Conv2d | nn.Linear,
    ranks: Ranks,
    sample: _Sample | None,
    inputs: Tensor | None,
) -> None:
    """Tucker-2 by higher-order orthogonal iteration (arXiv 1511.06530, section 3.2).

    Fitted to inputs it goes in two steps. The input factor comes from the weight with its input mode whitened by the
    channels' second moments, which takes kernel positions for independent. What the first factor lets through being
    fixed, core and output factor are then the least-squares solution of reduced rank for the layer's own outputs.
    """
    weight = layer.weight.detach()
    into, out = ranks
    root = inverse = torch.eye(layer.weight.shape[1])
    if inputs is not None:
        root, inverse = _roots(_with_ridge(_channel_moments(inputs.detach())))
    core, outer, inner = _tucker(torch.einsum("oihw,ij->ojhw", weight, root), (out, into))
    first = inner.T @ inverse
    kernel = torch.einsum("or,rshw->oshw", outer, core).flatten(1)
    covariance = shift = None
    if sample is not None:
        through = _through(first, sample.centred)
        left = sample.centred @ weight.flatten(1).T - through @ kernel.T
        change = least_change(through[None], left[None])
        if change is not None:
            kernel = kernel + change[0].T
        covariance = _covariance(through)
    middle, last = _truncate(kernel, out, covariance)
    if sample is not None:
        mean = _through(first, sample.mean[None])[0]
        shift = weight.flatten(1) @ sample.mean - last @ (middle @ mean)
    _set(made, [first, middle, last], layer.bias, shift)


def _through(first: Tensor, rows: Tensor) -> Tensor:
    """Patches [n, C * positions] after a 1x1 convolution with weight [r, C], float [n, r * positions]."""
    split = rows.reshape(len(rows), first.shape[1], -1)
    return torch.einsum("ncp,rc->nrp", split, first).flatten(1)


def _truncate(weight: Tensor, rank: int, covariance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factors [rank, in] and [out, rank] of a matrix [out, in] whose inputs have a covariance [in, in]."""
    squared = weight @ weight.T if covariance is None else weight @ covariance @ weight.T
    values, vectors = torch.linalg.eigh((squared + squared.T) / 2)
    kept = _signed(vectors.flip(1)[:, :rank])
    # Half of each component's size goes to either side: 8-bit grids then resolve both.
    sizes = values.flip(0)[:rank].clamp_min(0).sqrt()
    scale = sizes.clamp_min(_FLOOR * float(sizes.max()) + 1e-30).sqrt()
    return (kept.T @ weight) / scale[:, None], kept * scale


def _signed(vectors: Tensor) -> Tensor:
    """Columns turned so that their largest entry is positive."""
    largest = vectors.abs().argmax(0, keepdim=True)
    sign = vectors.gather(0, largest).sign()
    return vectors * torch.where(sign == 0, torch.ones_like(sign), sign)


def _tucker(weight: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Core [r_out, r_in, h, w] and factors [out, r_out], [in, r_in] with orthonormal columns."""
    # Imported late: networks without factored layers run where it is not installed.
    import tensorly
    from tensorly.decomposition import partial_tucker

    with tensorly.backend_context("numpy", local_threadsafe=True):
        (_, (outer, inner)), _ = partial_tucker(
            weight.numpy(), rank=list(ranks), modes=[0, 1], n_iter_max=SWEEPS, random_state=0
        )
    a, b = (_signed(torch.from_numpy(np.ascontiguousarray(m))) for m in (outer, inner))
    return torch.einsum("oihw,or,is->rshw", weight, a, b), a, b


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of a positive matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(moments)
    root = values.clamp_min(1e-30).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _with_ridge(moments: Tensor) -> Tensor:
    moments.diagonal().add_(RIDGE * moments.diagonal().mean() + 1e-12)
    return moments


def _channel_moments(inputs: Tensor) -> Tensor:
    """Second moments [C, C] over images and positions. The mean stays in: at the border the padding's zeros are
    inputs too, which no bias makes up for."""
    rows = inputs.permute(0, 2, 3, 1).reshape(-1, inputs.shape[1])
    return rows.T @ rows / len(rows)


def _covariance(centred: Tensor) -> Tensor:
    return _with_ridge(centred.T @ centred / len(centred))


@dataclass(frozen=True)
class _Sample:
    """Sampled rows of what a layer reads.

    Attributes:
        centred: float [n, C * positions], in the weight's order, less their mean.
        mean: float [C * positions]; zero where the layer has no bias that could take it.
    """

    centred: Tensor
    mean: Tensor


def _sample(layer: nn.Conv2d | nn.Linear, inputs: Tensor, places: int) -> _Sample:
    """Patches at random output positions, the same in every run."""
    if isinstance(layer, nn.Linear):
        height, width = inputs[0].numel() // inputs.shape[-1], 1
    else:
        assert not isinstance(layer.padding, str)
        # What the convolution's output would measure, without running it.
        probe = torch.empty(1, 1, *inputs.shape[2:], device="meta")
        window = torch.empty(1, 1, *layer.kernel_size, device="meta")
        grid = F.conv2d(probe, window, None, layer.stride, layer.padding, layer.dilation)
        height, width = grid.shape[2:]
    most = max(1, _LARGEST_SAMPLE // (len(inputs) * layer.weight[0].numel()))
    count = min(places, most, height * width)
    generator = torch.Generator().manual_seed(0)
    flat = torch.stack(
        [torch.randperm(height * width, generator=generator)[:count] for _ in range(len(inputs))]
    )
    rows = patches(layer, inputs, flat // width, flat % width)
    mean = torch.zeros(rows.shape[1]) if layer.bias is None else rows.mean(0)
    return _Sample(rows - mean, mean)


def _set(
    made: nn.Sequential, weights: list[Tensor], bias: Tensor | None, shift: Tensor | None
) -> None:
    for part, weight in zip(made, weights, strict=True):
        assert isinstance(part, nn.Conv2d | nn.Linear)
        part.weight.data = weight.reshape(part.weight.shape).contiguous()
    if bias is not None:
        last = made[-1]
        assert isinstance(last.bias, Tensor)
        last.bias.data = bias.detach().clone() if shift is None else bias.detach() + shift
