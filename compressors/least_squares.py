"""Linear least squares with a ridge towards no change, for many small problems or one large one.

With plenty of rows: the normal equations and a small fixed ridge. With few: a ridge chosen on rows held out, since
the small one would follow the noise of the rows; and where there are fewer rows than features the dual form, whose
cost grows with the rows: ``d = X' (X X' + ridge)^-1 R`` (Saunders et al. 1998, "Ridge Regression Learning Algorithm
in Dual Variables", eq. 7 with a linear kernel).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Ridges are relative to the mean diagonal of the matrix that is inverted.
RIDGE = 1e-4
# With fewer rows a feature than this the ridge is chosen on held-out rows.
PLENTY = 4
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# The last one in so many rows is held out.
_HELD_OUT = 4
# Features whose products with all the others are one block of a Gram matrix.
_BLOCK = 144


def least_change(inputs: Tensor, residual: Tensor) -> Tensor | None:
    """``argmin_d |X d - R|^2 + ridge |d|^2`` for every problem of a batch.

    Args:
        inputs: float [problems, rows, features]; rows of one image follow each other.
        residual: float [problems, rows, outputs].

    Returns:
        float [problems, features, outputs], zero for problems whose inputs are all zero; None where no ridge makes
        the error on held-out rows smaller, or nothing finite comes out.
    """
    rows, features = inputs.shape[1:]
    if rows >= PLENTY * features:
        return _finite(_System(inputs, residual).solve(RIDGE))
    cut = rows - max(1, rows // _HELD_OUT)
    if cut < 1:
        return None
    seen = _System(inputs[:, :cut], residual[:, :cut])
    held, wanted = inputs[:, cut:], residual[:, cut:]
    least, best = float(wanted.square().sum()), None
    for ridge in _RIDGES:
        error = float((wanted - held @ seen.solve(ridge)).square().sum())
        if error < least:
            least, best = error, ridge
    return None if best is None else _finite(_System(inputs, residual).solve(best))


class _System:
    """The normal equations of a batch of problems, or their dual form where that is smaller."""

    def __init__(self, inputs: Tensor, residual: Tensor) -> None:
        self._dual = inputs.shape[1] < inputs.shape[2]
        self._inputs = inputs
        if self._dual:
            matrix, self._right = inputs @ inputs.mT, residual
        else:
            # The narrow operand first: BLAS takes half the time of the product the other way round.
            matrix, self._right = _gram(inputs), (residual.mT @ inputs).mT
        self._matrix = matrix.double()

    def solve(self, ridge: float) -> Tensor:
        matrix = self._matrix.clone()
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        diagonal += ridge * diagonal.mean(-1, keepdim=True) + 1e-12
        factor, failed = torch.linalg.cholesky_ex(matrix)
        found = torch.cholesky_solve(self._right.double(), factor).to(self._right.dtype)
        found = torch.where((failed == 0).view(-1, 1, 1), found, torch.zeros_like(found))
        return self._inputs.mT @ found if self._dual else found


def _gram(inputs: Tensor) -> Tensor:
    """``X' X`` [problems, features, features] of inputs [problems, rows, features], of one large problem only what lies
    on and below its diagonal: Cholesky reads no more.
    """
    problems, _, features = inputs.shape
    if problems > 1 or features < 2 * _BLOCK:
        return inputs.mT @ inputs
    gram = inputs.new_zeros(1, features, features)
    for start in range(0, features, _BLOCK):
        stop = start + _BLOCK
        gram[:, start:, start:stop] = inputs[..., start:].mT @ inputs[..., start:stop]
    return gram


def _finite(delta: Tensor) -> Tensor | None:
    return delta if torch.isfinite(delta).all() else None
