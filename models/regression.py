"""Bayesian regression networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_dropout import BayesianModule


class Regression(PyroModule):
    r"""A fully connected network with Gaussian noise of unknown precision (CD section 4.2, appendix D):

    .. math:: y_n \sim \mathrm{Normal}(f^W(x_n), \tau^{-1/2}), \quad W \sim \mathrm{Normal}(0, 1/l), \quad
        \tau \sim \mathrm{Gamma}(0.1, 0.01)

    :param features: number of inputs.
    :param size: number of data points N of the data set; mini-batches are scaled to it.
    :param hidden: widths of the hidden layers.
    :param lengthscale: prior lengthscale l; l² is the prior precision of a weight.

    Example::

        >>> import torch
        >>> Regression(features=3, size=100)(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, features: int, size: int, hidden: Sequence[int] = (50,), lengthscale: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.net = BayesianModule(mlp(features, hidden), prior=dist.Normal(0.0, 1.0 / lengthscale))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        mean = self.net(x).squeeze(-1)
        precision = pyro.sample("precision", dist.Gamma(0.1, 0.01))
        with pyro.plate("data", max(self.size, len(x)), subsample_size=len(x)):
            pyro.deterministic("mean", mean, event_dim=0)
            return pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=y)


def mlp(features: int, hidden: Sequence[int] = (50,), outputs: int = 1) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    widths = (features, *hidden)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
