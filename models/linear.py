"""Bayesian linear and logistic regression as Pyro models, written to broadcast over draws and masks."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


class LinearRegression:
    r"""Conjugate linear regression (ENT eq. 11), no intercept:

    .. math:: \sigma^2 \sim \mathrm{InverseGamma}(a_0, b_0), \quad
        w \mid \sigma^2 \sim \mathrm{Normal}(0, \sigma^2 / \lambda_0), \quad
        y_n \sim \mathrm{Normal}(x_n^\top w, \sigma^2)

    :param shrinkage: λ0 > 0.
    :param a0: concentration of the prior of σ².
    :param b0: its rate.

    Example::

        >>> LinearRegression()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, shrinkage: float = 1.0, a0: float = 1.0, b0: float = 1.0) -> None:
        self.shrinkage, self.a0, self.b0 = shrinkage, a0, b0

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Any:
        prior = torch.tensor([self.a0, self.b0], dtype=x.dtype)
        variance = pyro.sample("variance", dist.InverseGamma(*prior))
        scale = (variance / self.shrinkage).sqrt().unsqueeze(-1)
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), scale).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal((x * w).sum(-1), variance.sqrt()), obs=y)


class LogisticRegression:
    r"""Logistic regression with an intercept that is neither shrunk nor dropped:

    .. math:: w \sim \mathrm{Normal}(0, s^2), \quad y_n \sim \mathrm{Bernoulli}(\sigma(b + x_n^\top w))

    :param scale: s, prior standard deviation of a coefficient; that of the intercept is 10.

    Example::

        >>> LogisticRegression()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Any:
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), self.scale).to_event(1))
        intercept = pyro.sample("intercept", dist.Normal(x.new_zeros(()), 10.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=intercept + (x * w).sum(-1)), obs=y)
