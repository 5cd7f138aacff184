"""Bayesian regression networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from models.priors import normal_prior
from pyro_dropout import BayesianModule


class Regression(PyroModule):
    r"""A fully connected network with Gaussian noise (MC section 4, CD section 4.2 and appendix D):

    .. math:: y_n \sim \mathrm{Normal}(f^W(x_n), \tau^{-1/2}), \quad W \sim \mathrm{Normal}(0, 1/l), \quad
        \tau \sim \mathrm{Gamma}(0.1, 0.01)

    :param features: number of inputs.
    :param size: number of data points N of the data set; mini-batches are scaled to it.
    :param hidden: widths of the hidden layers.
    :param lengthscale: prior lengthscale l, a number or a tensor; l² is the prior precision of a weight.
    :param activation: between layers.
    :param scaled: matrices of K inputs have the lengthscale l √K instead (CD appendix D); with l = 1 a layer's output
        has about the size of its inputs.
    :param precision: of the noise, τ in 1 / units of y²: ``"latent"`` with the prior above, ``"parameter"`` for its
        maximum likelihood, ``"network"`` for :math:`\log \tau(x_n)` as a second output (heteroscedastic noise, CD
        section 4.1; held between -20 and 20, so that no precision overflows), or a number or tensor, which stays as
        it is, in the buffer ``fixed_precision``.
    :raises ValueError: another ``precision``.

    Example::

        >>> import torch
        >>> Regression(features=3, size=100)(torch.zeros(5, 3)).shape
        torch.Size([5])
        >>> Regression(features=3, size=100, precision=25.0).fixed_precision
        tensor(25.)
    """

    def __init__(
        self,
        features: int,
        size: int,
        hidden: Sequence[int] = (50,),
        lengthscale: float | Tensor = 1.0,
        precision: str | float | Tensor = "latent",
        *,
        activation: type[nn.Module] = nn.ReLU,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(precision, str):
            if precision not in ("latent", "parameter", "network"):
                raise ValueError(
                    f'precision must be "latent", "parameter", "network" or a positive number, but found {precision!r}'
                )
        elif torch.as_tensor(precision).dim() or not torch.as_tensor(precision) > 0:
            raise ValueError(f"precision must be one positive number, but found {precision}")
        self.size, self.precision = size, precision if isinstance(precision, str) else "fixed"
        outputs = 2 if precision == "network" else 1
        prior = normal_prior(lengthscale, scaled=scaled)
        self.net = BayesianModule(mlp(features, hidden, outputs, activation), prior)
        if precision == "parameter":
            self.learned_precision = PyroParam(torch.tensor(1.0), constraints.positive)
        elif self.precision == "fixed":
            self.register_buffer("fixed_precision", torch.as_tensor(precision, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        out = self.net(x)
        mean = out[..., 0]
        precision = self._precision(out)
        with pyro.plate("data", max(self.size, len(x)), subsample_size=len(x)):
            pyro.deterministic("mean", mean, event_dim=0)
            return pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=y)

    def _precision(self, out: Tensor) -> Tensor:
        if self.precision == "latent":
            return pyro.sample("precision", dist.Gamma(out.new_full((), 0.1), 0.01))
        if self.precision == "network":
            return out[..., 1].clamp(-20.0, 20.0).exp()
        return self.learned_precision if self.precision == "parameter" else self.fixed_precision


def mlp(
    features: int, hidden: Sequence[int] = (50,), outputs: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers with an activation between them."""
    widths = (features, *hidden)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
