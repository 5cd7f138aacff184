"""Λ where there are fewer rows than columns: conjugate gradients for means, a factor of n × n for the rest."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from pyro_dropout.entropic._design import Design
from pyro_dropout.entropic._gradients import conjugate_gradients

DIRECT = 100  # rows for each right-hand side up to which a factor costs no more than the gradients
ITERATIONS = 100  # after which it does not either


class DiagonalPlusRows:
    r"""``Λ = diag(d) + S Xᵀ X S`` with ``S = diag(scale)``, for fewer rows n than columns p (Woodbury on the diagonal):

    .. math:: \Lambda^{-1} = D^{-1} - D^{-1} S X^\top M^{-1} X S D^{-1}, \quad
        M = I + X S D^{-1} S X^\top, \quad |\Lambda| = |D|\,|M|

    No p × p matrix is formed. Means need one solution with M, by conjugate gradients: where columns drop out, D is at
    least f (1-f) diag(XᵀX), so that M has few large eigenvalues and some twenty products with X are enough. The factor
    of M is for deviations, determinants and draws, and made when they are asked for. Draws as in Bhattacharya,
    Chakraborty & Mallick (2016).

    :param diagonal: d, positive, ``[p]``.
    :param rows: the design X.
    :param scale: ``[p]``.
    """

    def __init__(self, diagonal: Tensor, rows: Design, scale: Tensor) -> None:
        self.diagonal, self.rows, self.scale, self.p = diagonal, rows, scale, rows.p

    @cached_property
    def factor(self) -> Tensor:
        """Of M, ``[n, n]``."""
        m = self.rows.outer(self.scale**2 / self.diagonal)
        m.diagonal().add_(1.0)
        factor, info = torch.linalg.cholesky_ex(m)
        if int(info) != 0:
            raise ValueError(
                "products of rows are lost to rounding: columns have means that are large beside their deviations; "
                "center them, or leave out what is constant"
            )
        return factor

    @cached_property
    def logdet(self) -> Tensor:
        return self.diagonal.log().sum() + 2 * self.factor.diagonal().log().sum()

    def solve_rows(self, u: Tensor) -> Tensor:
        """``M⁻¹ u`` for ``[n]`` or ``[n, k]``, by the factor where there is one or it costs no more."""
        if u.numel() * DIRECT < self.rows.n**2 and "factor" not in self.__dict__:
            scaled = self.rows.scaled(self.scale / self.diagonal.sqrt())
            found = conjugate_gradients(lambda v: v + scaled.matvec(scaled.rmatvec(v)), u, ITERATIONS)
            if found is not None:
                return found
        return self._by_factor(u)

    def _by_factor(self, u: Tensor) -> Tensor:
        out = torch.cholesky_solve(u if u.dim() > 1 else u.unsqueeze(1), self.factor)
        return out if u.dim() > 1 else out.squeeze(1)

    def quadratic(self, v: Tensor) -> Tensor:
        flat = v.reshape(-1, self.p)
        low = self.rows.matvec((flat * self.scale).T)
        return ((flat.square() @ self.diagonal) + low.square().sum(0)).reshape(v.shape[:-1])

    def inverse_diagonal(self, index: Tensor | None = None) -> Tensor:
        if index is None:
            return self._inverse_diagonal
        gain = self.scale[index] / self.diagonal[index]
        return 1 / self.diagonal[index] - gain**2 * self.rows.column_forms(torch.cholesky_inverse(self.factor), index)

    @cached_property
    def _inverse_diagonal(self) -> Tensor:
        return self.inverse_diagonal(torch.arange(self.p))

    def inverse_quadratic(self, x: Design) -> Tensor:
        cross = self.rows.outer(self.scale / self.diagonal, x)
        low = torch.linalg.solve_triangular(self.factor, cross, upper=False).square().sum(0)
        return x.weighted_squares(1 / self.diagonal) - low

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        prior = torch.randn(self.p, n, dtype=self.diagonal.dtype, generator=generator)
        prior = prior / self.diagonal.sqrt().unsqueeze(1)
        noise = torch.randn(self.rows.n, n, dtype=self.diagonal.dtype, generator=generator)
        inner = self._by_factor(self.rows.matvec(self.scale.unsqueeze(1) * prior) + noise)
        return (prior - (self.scale / self.diagonal).unsqueeze(1) * self.rows.rmatvec(inner)).T
