"""Ridge solutions against their definition, and what few rows are allowed to change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressors.least_squares import _BLOCK, PLENTY, RIDGE, _gram, _System, least_change


def made(problems: int, rows: int, features: int, outputs: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(problems, rows, n, generator=generator) for n in (features, outputs, outputs)
    ]


def test_plenty_of_rows_give_the_ridge_solution() -> None:
    inputs, residual, _ = made(3, 80, 6, 4)
    found = least_change(inputs, residual)
    assert found is not None and found.shape == (3, 6, 4)
    for x, r, d in zip(inputs.double(), residual.double(), found):
        gram = x.T @ x
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(6)
        torch.testing.assert_close(
            d.double(), torch.linalg.solve(gram + ridge, x.T @ r), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("features", [2 * _BLOCK - 1, 2 * _BLOCK, 2 * _BLOCK + 7, 3 * _BLOCK])
@pytest.mark.parametrize("problems", [1, 2])
def test_gram_matrices_in_blocks_are_whole_below_the_diagonal(problems: int, features: int) -> None:
    inputs, residual, _ = made(problems, 2000, features, 3)
    wanted = inputs.double().mT @ inputs.double()
    torch.testing.assert_close(_gram(inputs).double().tril(), wanted.tril(), rtol=1e-4, atol=1e-2)
    found = least_change(inputs, residual)
    assert found is not None
    diagonal = wanted.diagonal(dim1=-2, dim2=-1)
    diagonal += RIDGE * diagonal.mean(-1, keepdim=True)
    solution = torch.linalg.solve(wanted, inputs.double().mT @ residual.double())
    torch.testing.assert_close(found.double(), solution, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [12, 40])
def test_both_forms_minimise_the_same_sum(rows: int) -> None:
    """Where the gradient of ``|X d - R|^2 + ridge |d|^2`` is zero."""
    inputs, residual, _ = made(2, rows, 20, 3)
    found = _System(inputs, residual).solve(0.1).double()
    x, r = inputs.double(), residual.double()
    matrix = x.mT @ x if rows >= 20 else x @ x.mT
    ridge = 0.1 * matrix.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
    gradient = x.mT @ (x @ found - r) + ridge * found
    assert gradient.abs().max() < 1e-4 * (x.mT @ r).abs().max()


@pytest.mark.parametrize("rows", [30, 200])
def test_rows_that_explain_nothing_change_nothing(rows: int) -> None:
    """With few rows a fit to noise would make other rows worse."""
    inputs, noise, _ = made(1, rows, 60, 5)
    assert rows < PLENTY * 60
    assert least_change(inputs, noise) is None


def test_few_noisy_rows_are_fitted_better_than_with_the_small_ridge() -> None:
    inputs, noise, _ = made(1, 130, 100, 4)
    truth = torch.randn(1, 100, 4, generator=torch.Generator().manual_seed(5)) * 0.3
    residual = inputs @ truth + 2 * noise
    chosen = least_change(inputs, residual)
    assert chosen is not None
    fixed = _System(inputs, residual).solve(RIDGE)
    fresh, _, _ = made(1, 1000, 100, 4, seed=9)

    def error(change: Tensor) -> float:
        return float((fresh @ (change - truth)).square().mean())

    assert error(chosen) < 0.5 * error(fixed)
    assert error(chosen) < error(torch.zeros_like(truth))


def test_problems_of_a_batch_do_not_touch_each_other() -> None:
    inputs, residual, _ = made(4, 50, 5, 2)
    inputs[1] = 0  # dead inputs: nothing to learn, and no harm to the others
    together = least_change(inputs, residual)
    assert together is not None and torch.count_nonzero(together[1]) == 0
    for k in (0, 2, 3):
        alone = least_change(inputs[k : k + 1], residual[k : k + 1])
        assert alone is not None
        torch.testing.assert_close(together[k], alone[0], rtol=1e-4, atol=1e-6)


def test_inputs_that_say_the_same_share_the_weight() -> None:
    """A Gram matrix without an inverse: two channels alike, one all but alike, one dead."""
    inputs, noise, _ = made(1, 400, 4, 3)
    alike = torch.cat([inputs, inputs[..., :1], inputs[..., 1:2] * (1 + 1e-7)], 2)
    alike = torch.cat([alike, torch.zeros(1, 400, 1)], 2)
    truth = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(6))
    residual = inputs @ truth + 0.01 * noise
    found = least_change(alike, residual)
    assert found is not None and torch.isfinite(found).all()
    assert found.abs().max() < 2 * truth.abs().max()
    assert (alike @ found - residual).square().mean() < 2e-4
    torch.testing.assert_close(found[0, 0], found[0, 4], rtol=1e-3, atol=1e-4)
    assert torch.count_nonzero(found[0, 6]) == 0


def test_a_single_row_is_no_basis() -> None:
    assert least_change(torch.ones(1, 1, 3), torch.ones(1, 1, 2)) is None
