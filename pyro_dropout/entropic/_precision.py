"""Λ, up to what posteriors ask of it; here by the Cholesky factor of p × p."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

import pyro_dropout._settings as settings
from pyro_dropout.entropic._design import Design


class Precision(Protocol):
    """A positive definite matrix Λ ``[p, p]``, up to what posteriors ask of it."""

    p: int

    @property
    def logdet(self) -> Tensor: ...

    def quadratic(self, v: Tensor) -> Tensor:
        """``vᵀ Λ v`` over the last dimension of ``[..., p]``, differentiable."""

    def inverse_diagonal(self, index: Tensor | None = None) -> Tensor:
        """``diag(Λ⁻¹)``, all of it or some entries."""

    def inverse_quadratic(self, x: Design) -> Tensor:
        """``xᵀ Λ⁻¹ x`` for each row of a design, ``[n]``."""

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws of Normal(0, Λ⁻¹), ``[n, p]``."""


class DensePrecision:
    """Λ itself, by its Cholesky factor.

    :param matrix: Λ, ``[p, p]``.
    :param error: how far off its diagonal may be, by what it was computed from, ``[p]``.
    :raises ValueError: Λ is not positive definite, or only by rounding.
    """

    def __init__(self, matrix: Tensor, error: Any = 0.0) -> None:
        self.matrix, self.p = matrix, len(matrix)
        self.factor = _cholesky(matrix, error)
        self.logdet = 2 * self.factor.diagonal().log().sum()

    def solve(self, v: Tensor) -> Tensor:
        """``Λ⁻¹ v`` for ``[p]`` or ``[p, k]``."""
        out = torch.cholesky_solve(v if v.dim() > 1 else v.unsqueeze(1), self.factor)
        return out if v.dim() > 1 else out.squeeze(1)

    def quadratic(self, v: Tensor) -> Tensor:
        return torch.linalg.vecdot(v @ self.factor, v @ self.factor)

    def inverse_diagonal(self, index: Tensor | None = None) -> Tensor:
        units = torch.eye(self.p, dtype=self.factor.dtype)
        units = units if index is None else units[:, index]
        return torch.linalg.solve_triangular(self.factor, units, upper=False).square().sum(0)

    def inverse_quadratic(self, x: Design) -> Tensor:
        rows = max(1, settings.row_block // self.p)
        if x.n > rows and x.sparse is None:
            return torch.cat([self.inverse_quadratic(Design(part)) for part in x.dense.split(rows)])
        half = torch.linalg.solve_triangular(self.factor, x.to_dense().T, upper=False)
        return half.square().sum(0)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.p, n, dtype=self.factor.dtype, generator=generator)
        return torch.linalg.solve_triangular(self.factor.mT, noise, upper=True).T


def _cholesky(matrix: Tensor, error: Any = 0.0) -> Tensor:
    """The factor, whose squared diagonal is what each column has that those before it do not explain."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    floor = 4 * len(matrix) * torch.finfo(matrix.dtype).eps * matrix.diagonal() + error
    unclear = ~(factor.diagonal().square() > floor)
    if int(info) != 0:
        unclear[int(info) - 1] = True
        unclear[int(info) :] = False  # of those no factor was computed
    if bool(unclear.any()):
        raise ValueError(
            f"the posterior precision is not positive definite, or only by rounding: columns {first(unclear)} are "
            "neither seen in the data apart from others nor shrunk; give a larger shrinkage (λ0), or leave out "
            "constant, duplicated or collinear columns"
        )
    return factor


def first(which: Tensor) -> list[int]:
    """The first five that are True."""
    return torch.nonzero(which).flatten()[:5].tolist()
