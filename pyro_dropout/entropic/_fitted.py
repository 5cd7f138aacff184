"""What a fit leaves: the posterior, and the parameters that it was made with."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_dropout.entropic._data import EPS, RegressionData
from pyro_dropout.entropic._design import Design
from pyro_dropout.entropic._precision import DensePrecision, Precision, first
from pyro_dropout.entropic._rows import DiagonalPlusRows


@dataclass(frozen=True)
class Prior:
    """The parameters of a fit.

    :param keep: 1 - f of each covariate, ``[p]``.
    """

    keep: Tensor
    shrinkage: float
    a0: float
    b0: float
    intercept: bool


@dataclass(frozen=True)
class Fitted:
    """The posterior of data under a prior; an estimator's parameters may have changed since.

    :param n: how many rows there were.
    :param x_mean: what is taken off the covariates, ``[p]``; zeros without intercept.
    :param y_mean: what is taken off the responses.
    :param mu: μ, ``[p]``.
    :param a: concentration of σ².
    :param b: rate of σ².
    """

    prior: Prior
    n: int
    x_mean: Tensor
    y_mean: float
    mu: Tensor
    precision: Precision
    a: float
    b: float

    @property
    def coef(self) -> Tensor:
        return self.prior.keep * self.mu

    def design(self, X: object) -> Design:
        return Design(X, self.x_mean if self.prior.intercept else None)

    def predictive(self, X: object) -> dist.StudentT:
        """Of each row, without dropout."""
        design = self.design(X)
        scale = (self.b / self.a * self.spread(design)).sqrt()
        df = torch.tensor(2 * self.a, dtype=torch.float64)
        return dist.StudentT(df, self.y_mean + design.matvec(self.coef), scale)

    def spread(self, design: Design) -> Tensor:
        """Variance of a prediction without dropout, in units of the noise's, ``[n]``."""
        scaled = design.scaled(self.prior.keep) if self.drops else design
        return 1 + self.prior.intercept / self.n + self.precision.inverse_quadratic(scaled)

    @property
    def drops(self) -> bool:
        return bool((self.prior.keep < 1).any())

    def mask_variance(self, design: Design, squares: Tensor) -> Tensor:
        """``f(1-f) Σ_j x_j² w_j²`` of each row, ``[n]`` for squares ``[p]`` and ``[n, k]`` for ``[p, k]``."""
        spread = self.prior.keep * (1 - self.prior.keep)
        return design.weighted_squares((squares.movedim(0, -1) * spread).movedim(-1, 0))

    def dropped(self, design: Design) -> Tensor:
        """Variance that the masks of new data add, ``[n]``."""
        if not self.drops:
            return torch.zeros(design.n, dtype=torch.float64)
        return self.mask_variance(design, self.mu**2 + self.b / (self.a - 1) * self.precision.inverse_diagonal())

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the fitted mean ``[n, p]``, intercepts and noise variances ``[n]``."""
        a = torch.full((n,), self.a, dtype=torch.float64)
        variance = self.b / torch._standard_gamma(a, generator=generator)
        deviation = variance.sqrt()
        coef = self.prior.keep * (self.mu + deviation.unsqueeze(1) * self.precision.draw(n, generator))
        intercept = torch.zeros(n, dtype=torch.float64)
        if self.prior.intercept:
            noise = torch.randn(n, dtype=torch.float64, generator=generator)
            intercept = self.y_mean - coef @ self.x_mean + deviation * noise / math.sqrt(self.n)
        return coef, intercept, variance

    def log_normalizer(self) -> float:
        prior, a, b = self.prior, self.a, self.b
        if prior.shrinkage == 0:
            raise ValueError("with shrinkage = 0 the prior of the coefficients is flat, and log Z has no meaning")
        log_z = -0.5 * (self.n - prior.intercept) * math.log(2 * math.pi) - 0.5 * prior.intercept * math.log(self.n)
        log_z += 0.5 * (len(self.mu) * math.log(prior.shrinkage) - float(self.precision.logdet))
        if prior.a0 > 0 and prior.b0 > 0:
            log_z += prior.a0 * math.log(prior.b0) - math.lgamma(prior.a0)
        return log_z + math.lgamma(a) - a * math.log(b)


def solve(data: RegressionData, prior: Prior, rows: tuple[Any, Tensor] | None = None) -> Fitted:
    """ENT eq. 14.

    :param rows: all of the data, where they are at hand: what sums of products lose of little noise is in them.
    :raises ValueError: data and prior leave a coefficient or the noise undetermined.
    """
    n, nothing = data.n, torch.zeros(data.p, dtype=torch.float64)
    means = data.means() if prior.intercept else (nothing, 0.0)
    a = prior.a0 + 0.5 * (n - prior.intercept)
    if a <= 0:
        raise ValueError(
            "1 sample with an intercept and Jeffreys' prior leaves no posterior of the noise: give a0 and b0 > 0"
        )
    rounding = data.rounding() if prior.intercept else (nothing, 0.0)
    if data.rows is None:
        solved = _of_sums(data, prior, means, rounding, rows)
    else:
        solved = _of_rows(data, prior, means, rounding)
    if prior.b0 == 0 and not solved.squares > solved.error:
        raise ValueError(
            "the targets are fitted without error, up to rounding, so Jeffreys' prior puts the noise variance at 0: "
            "give b0 > 0, or fit() all data at once if they came in chunks"
        )
    b = prior.b0 + 0.5 * max(solved.squares, 0.0)
    return Fitted(prior, n, means[0], float(means[1]), solved.mu, solved.precision, a, b)


class _Solved(NamedTuple):
    """Λ and μ; ``yᵀy - μᵀΛμ``, and how much of it may be rounding."""

    mu: Tensor
    precision: Precision
    squares: float
    error: float


def _of_sums(
    data: RegressionData,
    prior: Prior,
    means: tuple[Tensor, float],
    rounding: tuple[Tensor, float],
    rows: tuple[Any, Tensor] | None,
) -> _Solved:
    """From sums of products, by Cholesky of p × p; refined by the rows, if they are at hand."""
    keep, (x_mean, y_mean), (columns_error, y_error) = prior.keep, means, rounding
    gram, cross, total = data.products(x_mean, y_mean)
    diagonal = prior.shrinkage + keep * (1 - keep) * gram.diagonal()
    matrix = torch.outer(keep, keep) * gram
    matrix.diagonal().add_(diagonal)
    precision = DensePrecision(matrix, keep * columns_error)
    mu = precision.solve(keep * cross)
    squares = total - float((keep * cross) @ mu)
    # Of what is added up to the residual: much more than itself where there is little noise.
    size = (math.sqrt(total) + float((keep * mu).abs() @ gram.diagonal().clamp_min(0).sqrt())) ** 2
    if rows is None:
        error = y_error + 1e-14 * total
        lost = 4 * math.sqrt(data.n) * EPS * size
        if error < squares and 2 * prior.b0 + squares < 100 * lost:
            warnings.warn(
                "the noise is little beside the signal and read from sums of products, of which rounding may leave "
                "less than two digits: fit() of all data at once keeps them",
                stacklevel=5,
            )
        return _Solved(mu, precision, squares, error)
    design, y = Design(rows[0], x_mean if prior.intercept else None), rows[1] - y_mean
    for _ in range(2):
        residual = y - design.matvec(keep * mu)
        mu = mu + precision.solve(keep * design.rmatvec(residual) - diagonal * mu)
    residual = y - design.matvec(keep * mu)
    squares = float(residual @ residual + diagonal @ mu**2)
    return _Solved(mu, precision, squares, y_error + 64 * EPS**2 * size)


def _of_rows(
    data: RegressionData, prior: Prior, means: tuple[Tensor, float], rounding: tuple[Tensor, float]
) -> _Solved:
    """From fewer rows than columns, by products with them."""
    keep, (x_mean, y_mean), (columns_error, y_error) = prior.keep, means, rounding
    design, y = data.design(x_mean if prior.intercept else None), data.y - y_mean
    diagonal = prior.shrinkage + keep * (1 - keep) * design.squares()
    unseen = diagonal <= keep * (1 - keep) * columns_error
    if bool(unseen.any()):
        raise ValueError(
            f"there are {data.n} rows for {data.p} columns, and columns {first(unseen)} are neither shrunk nor "
            "dropped: the posterior is improper; give shrinkage > 0, or leave out constant columns"
        )
    precision = DiagonalPlusRows(diagonal, design, keep)
    dual = precision.solve_rows(y)
    mu = keep / diagonal * design.rmatvec(dual)
    squares = float(dual @ dual + diagonal @ mu**2)  # dual is the residual: no difference of large sums
    return _Solved(mu, precision, squares, y_error)
