"""What a fit leaves: the posterior, and the parameters that it was made with."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

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
    keep, rate, n = prior.keep, 1 - prior.keep, data.n
    x_mean, y_mean = data.means() if prior.intercept else (torch.zeros(data.p, dtype=torch.float64), 0.0)
    center = x_mean if prior.intercept else None
    a = prior.a0 + 0.5 * (n - prior.intercept)
    if a <= 0:
        raise ValueError(
            "1 sample with an intercept and Jeffreys' prior leaves no posterior of the noise: give a0 and b0 > 0"
        )
    columns_error, y_error = data.rounding() if prior.intercept else (torch.zeros(data.p, dtype=torch.float64), 0.0)
    precision: Precision
    if data.rows is None:
        gram, cross, total = data.products(x_mean, y_mean)
        diagonal = prior.shrinkage + keep * rate * gram.diagonal()
        matrix = torch.outer(keep, keep) * gram
        matrix.diagonal().add_(diagonal)
        precision = DensePrecision(matrix, keep * columns_error)
        mu = precision.solve(keep * cross)
        squares = total - float((keep * cross) @ mu)
        # Of what is added up to the residual: much more than itself where there is little noise.
        size = (math.sqrt(total) + float((keep * mu).abs() @ gram.diagonal().clamp_min(0).sqrt())) ** 2
        if rows is None:
            error = y_error + 1e-14 * total
            lost = 4 * math.sqrt(n) * EPS * size
            if error < squares and 2 * prior.b0 + squares < 100 * lost:
                warnings.warn(
                    "the noise is little beside the signal and read from sums of products, of which rounding may leave "
                    "less than two digits: fit() of all data at once keeps them",
                    stacklevel=4,
                )
        else:
            design, y = Design(rows[0], center), rows[1] - y_mean
            for _ in range(2):
                residual = y - design.matvec(keep * mu)
                mu = mu + precision.solve(keep * design.rmatvec(residual) - diagonal * mu)
            residual = y - design.matvec(keep * mu)
            squares = float(residual @ residual + diagonal @ mu**2)
            error = y_error + 64 * EPS**2 * size
    else:
        design, y = data.design(center), data.y - y_mean
        diagonal = prior.shrinkage + keep * rate * design.squares()
        unseen = diagonal <= keep * rate * columns_error
        if bool(unseen.any()):
            raise ValueError(
                f"there are {n} rows for {data.p} columns, and columns {first(unseen)} are neither shrunk nor dropped: "
                "the posterior is improper; give shrinkage > 0, or leave out constant columns"
            )
        rows_precision = DiagonalPlusRows(diagonal, design, keep)
        dual = rows_precision.solve_rows(y)
        precision, mu = rows_precision, keep / diagonal * design.rmatvec(dual)
        squares = float(dual @ dual + diagonal @ mu**2)  # dual is the residual: no difference of large sums
        error = y_error
    if prior.b0 == 0 and not squares > error:
        raise ValueError(
            "the targets are fitted without error, up to rounding, so Jeffreys' prior puts the noise variance at 0: "
            "give b0 > 0, or fit() all data at once if they came in chunks"
        )
    b = prior.b0 + 0.5 * max(squares, 0.0)
    return Fitted(prior, n, x_mean, float(y_mean), mu, precision, a, b)
