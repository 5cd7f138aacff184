"""Small models and the statistics that several tests share."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from models.regression import mlp
from pyro_dropout import BayesianModule


class FixedNoise(PyroModule):
    """Regression with a known noise scale: everything random about it is a weight."""

    def __init__(self, net, size, prior=None, scale=0.5, **kwargs):
        super().__init__()
        self.net = BayesianModule(net, prior=prior or dist.Normal(0.0, 1.0), **kwargs)
        self.size, self.scale = size, scale

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            return pyro.sample("obs", dist.Normal(mean, self.scale), obs=y)


class PlainPyroBNN(PyroModule):
    """The BNN that a Pyro user writes without this package."""

    def __init__(self, features=3, hidden=4):
        super().__init__()
        self.first = PyroModule[nn.Linear](features, hidden)
        self.second = PyroModule[nn.Linear](hidden, 1)
        for layer in (self.first, self.second):
            for name, parameter in list(layer.named_parameters()):
                shape = parameter.shape
                setattr(layer, name, PyroSample(dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))))

    def forward(self, x, y=None):
        mean = self.second(self.first(x).relu()).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


def regression_data(n=20, features=3, dtype=torch.float64):
    x = torch.randn(n, features, dtype=dtype)
    return x, x[:, 0].sin() + 0.1 * torch.randn(n, dtype=dtype)


def linear_data(n, p, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + rng.normal(size=p)
    return x, x @ rng.normal(size=p) / math.sqrt(p) + rng.normal(size=n)


def double_mlp(features=3, hidden=(4,)):
    return mlp(features, hidden).double()


def gradients(loss, model, guide, x, y, n):
    """``n`` independent losses ``[n]`` and gradients ``{parameter: [n, numel]}``."""
    losses, draws = [], {}
    for _ in range(n):
        guide.zero_grad(set_to_none=True)
        losses.append(loss.loss_and_grads(model, guide, x, y))
        for name, parameter in guide.named_parameters():
            draws.setdefault(name, []).append(parameter.grad.flatten().clone())
    return torch.tensor(losses, dtype=torch.float64), {k: torch.stack(v) for k, v in draws.items()}


def assert_same_mean(a: Tensor, b: Tensor | float, standard_errors: float = 5.0):
    """Means over the first dimension agree within a stated number of standard errors of their difference."""
    variance = a.var(0) / len(a)
    target = b
    if isinstance(b, Tensor) and b.dim() == a.dim():
        variance = variance + b.var(0) / len(b)
        target = b.mean(0)
    error = (a.mean(0) - target).abs()
    bound = standard_errors * variance.sqrt() + 1e-12
    assert bool((error <= bound).all()), f"off by {(error / bound).max().item() * standard_errors:.1f} standard errors"


def bernoulli_entropy(keep):
    return -sum(p * math.log(p) for p in (keep, 1 - keep) if p > 0)
