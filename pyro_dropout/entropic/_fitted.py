"""What a fit leaves: the posterior, and the parameters that it was made with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_dropout.entropic._design import Design, times
from pyro_dropout.entropic._precision import Precision
from pyro_dropout.entropic._prior import Prior


@dataclass(frozen=True)
class Fitted:
    """The posterior of data under a prior; an estimator's parameters may have changed since.

    Several outputs have one Λ, and each its own μ and σ²; "..." is nothing for one output, ``outputs`` for several.

    :param n: how many rows there were.
    :param total: the sum of their weights.
    :param log_weights: the sum of their logarithms.
    :param x_mean: what is taken off the covariates, ``[p]``; zeros without intercept.
    :param y_mean: what is taken off the responses, ``[...]``.
    :param mu: μ, ``[p, ...]``.
    :param a: concentration of σ².
    :param b: rate of σ², ``[...]``.
    """

    prior: Prior
    n: int
    total: float
    log_weights: float
    x_mean: Tensor
    y_mean: Tensor
    mu: Tensor
    precision: Precision
    a: float
    b: Tensor

    @property
    def coef(self) -> Tensor:
        """Of the fitted mean, ``[p, ...]``."""
        return times(self.prior.keep, self.mu)

    @property
    def intercept(self) -> Tensor:
        return self.y_mean - self.x_mean @ self.coef

    def design(self, X: object) -> Design:
        return Design(X, self.x_mean if self.prior.intercept else None)

    def mean(self, design: Design) -> Tensor:
        """Of predictions, ``[n, ...]``."""
        return self.y_mean + design.matvec(self.coef)

    def predictive(self, X: object, weights: Tensor | None = None) -> dist.StudentT:
        """Of each row ``[n, ...]``, without dropout.

        :param weights: of the responses, ``[n]``; 1 by default.
        """
        design = self.design(X)
        scale = torch.tensordot(self.spread(design, weights), self.b / self.a, dims=0).sqrt()
        df = torch.tensor(2 * self.a, dtype=torch.float64)
        return dist.StudentT(df, self.mean(design), scale)

    def spread(self, design: Design, weights: Tensor | None = None) -> Tensor:
        """Variance of a prediction without dropout, in units of the noise's, ``[n]``."""
        scaled = design.scaled(self.prior.keep) if self.drops else design
        noise = 1.0 if weights is None else 1 / weights
        return noise + self.prior.intercept / self.total + self.precision.inverse_quadratic(scaled)

    def variance(self, design: Design, dropout: bool) -> Tensor:
        """Of a prediction, ``[n, ...]``; infinite with two degrees of freedom or less."""
        if self.a <= 1:
            return torch.full((design.n, *self.b.shape), math.inf, dtype=torch.float64)
        noise = self.b / (self.a - 1)
        variance = torch.tensordot(self.spread(design), noise, dims=0)
        if not (dropout and self.drops):
            return variance
        squares = torch.tensordot(self.precision.inverse_diagonal(), noise, dims=0)
        return variance + self.mask_variance(design, self.mu**2 + squares)

    @property
    def drops(self) -> bool:
        return bool((self.prior.keep < 1).any())

    def mask_variance(self, design: Design, squares: Tensor) -> Tensor:
        """``f(1-f) Σ_j x_j² w_j²`` of each row, ``[n]`` for squares ``[p]`` and ``[n, k]`` for ``[p, k]``."""
        return design.weighted_squares(times(self.prior.keep * (1 - self.prior.keep), squares))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the fitted mean ``[n, ..., p]``, intercepts and noise variances ``[n, ...]``."""
        shape = (n, *self.b.shape)
        a = torch.full(shape, self.a, dtype=torch.float64)
        variance = self.b / torch._standard_gamma(a, generator=generator)
        deviation = variance.sqrt()
        drawn = self.precision.draw(deviation.numel(), generator).reshape(*shape, -1)
        coef = self.prior.keep * (self.mu.movedim(0, -1) + deviation.unsqueeze(-1) * drawn)
        intercept = torch.zeros(shape, dtype=torch.float64)
        if self.prior.intercept:
            noise = torch.randn(shape, dtype=torch.float64, generator=generator)
            intercept = self.y_mean - coef @ self.x_mean + deviation * noise / math.sqrt(self.total)
        return coef, intercept, variance

    def log_normalizer(self) -> Tensor:
        """``[...]``"""
        prior, a, b = self.prior, self.a, self.b
        if prior.shrinkage == 0:
            raise ValueError("with shrinkage = 0 the prior of the coefficients is flat, and log Z has no meaning")
        log_z = -0.5 * (self.n - prior.intercept) * math.log(2 * math.pi) + 0.5 * self.log_weights
        log_z -= 0.5 * prior.intercept * math.log(self.total)
        log_z += 0.5 * (len(self.mu) * math.log(prior.shrinkage) - float(self.precision.logdet))
        if prior.a0 > 0 and prior.b0 > 0:
            log_z += prior.a0 * math.log(prior.b0) - math.lgamma(prior.a0)
        return log_z + math.lgamma(a) - a * b.log()
