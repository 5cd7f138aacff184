"""Learned rates per unit find out which inputs matter: five data sets as five networks in a plate."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from models.regression import mlp
from pyro_dropout import AutoBernoulliDropout, BayesianModule, TraceDropout_ELBO

SEEDS, N, INFORMATIVE, JUNK, NOISE = 5, 1000, 10, 30, 0.5
IS_JUNK = [0] * INFORMATIVE + [1] * JUNK


class Networks(PyroModule):
    """One network for each data set ``[SEEDS, N, features]``."""

    def __init__(self, net, lengthscale):
        super().__init__()
        self.net = BayesianModule(net, prior=dist.Normal(0.0, 1 / lengthscale), event_dim=1)

    def forward(self, x, y=None):
        with pyro.plate("networks", SEEDS, dim=-2):
            mean = self.net(x).squeeze(-1)
            with pyro.plate("data", N, dim=-1):
                return pyro.sample("obs", dist.Normal(mean, NOISE), obs=y)


def data(x, size):
    weights = torch.randn(SEEDS, INFORMATIVE).sign() * size * (1 + 0.3 * torch.rand(SEEDS, INFORMATIVE))
    return (x[..., :INFORMATIVE] @ weights.unsqueeze(-1)).squeeze(-1) + NOISE * torch.randn(SEEDS, N)


def learned_rates(gradient, net, lengthscale, x, y, steps, rate, optimiser):
    """Rates of the inputs, ``[SEEDS, features]``; ``optimiser`` is that of the rates."""
    pyro.settings.set(module_local_params=True)
    model = Networks(net, lengthscale)
    guide = AutoBernoulliDropout(model, rate=rate, learnable=True, per_unit=True)
    elbo = TraceDropout_ELBO(gradient=gradient)(model, guide)
    elbo(x, y)
    rates = [p for name, p in elbo.named_parameters() if "logits" in name]
    others = [p for name, p in elbo.named_parameters() if "logits" not in name]
    optimisers = [optimiser(rates), torch.optim.Adam(others, lr=0.01)]
    schedules = [CosineAnnealingLR(o, steps, 1e-4) for o in optimisers]
    for _ in range(steps):
        elbo.zero_grad()
        elbo(x, y).backward()
        for step in (*optimisers, *schedules):
            step.step()
    return next(iter(guide.rates().values())).squeeze(1)


def assert_separated(rates):
    assert rates[:, :INFORMATIVE].max() < 0.2
    for own in rates:
        assert roc_auc_score(IS_JUNK, own) >= 0.99


@pytest.mark.parametrize("gradient", ["arm", "disarm"])
def test_rates_of_inputs_are_the_optimum_in_closed_form(gradient, capsys):
    """Linear regression on orthogonal inputs, ``XᵀX = N I``, has its rates in closed form.

    With ``c`` least squares, τ the noise's precision and ``s = Nτ / (Nτ + l²)``, minimising
    ``Nτ/2 [(c - loc)² + loc² rate/keep] + l²/2 loc²/keep - H(keep)`` first in ``loc = c s keep`` leaves
    ``-s Nτc²/2 keep - H(keep)``: ``rate = σ(-s Nτc²/2)``. For junk ``Nτc²`` is χ² with one degree of freedom, so the
    rate goes to 1/2 as the prior makes the weight vanish.
    """
    x = torch.linalg.qr(torch.randn(SEEDS, N, INFORMATIVE + JUNK))[0] * math.sqrt(N)
    y = data(x, size=0.14)
    precision, shrink = N / NOISE**2, 0.1
    lengthscale = math.sqrt(precision * (1 / shrink - 1))
    least_squares = (x * y.unsqueeze(-1)).mean(1)
    optimum = torch.sigmoid(-shrink * precision * least_squares**2 / 2)
    net = nn.Linear(INFORMATIVE + JUNK, 1, bias=False)
    nn.init.zeros_(net.weight)  # near where it ends, or the prior's first steps throw the rates far away
    sgd = partial(torch.optim.SGD, lr=0.3)
    rates = learned_rates(gradient, net, lengthscale, x, y, 600, rate=0.5, optimiser=sgd)
    with capsys.disabled():
        junk, informative = rates[:, INFORMATIVE:], rates[:, :INFORMATIVE]
        print(
            f"\n{gradient}: mean error {(rates - optimum).abs().mean():.3f}, informative at most "
            f"{informative.max():.3f}, junk {junk.mean():.2f} on average, from {junk.min():.2f}"
        )
    assert (rates - optimum).abs().mean() < 0.02
    assert (rates - optimum).abs().max() < 0.1
    assert (rates[:, INFORMATIVE:].mean() - 0.5).abs() < 0.03
    assert_separated(rates)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["arm", "disarm"])
def test_rates_separate_junk_from_informative_inputs_of_a_network(gradient, capsys):
    x = torch.randn(SEEDS, N, INFORMATIVE + JUNK)
    net, adam = mlp(INFORMATIVE + JUNK, (20,)), partial(torch.optim.Adam, lr=0.05)
    rates = learned_rates(gradient, net, 1.0, x, data(x, size=0.5), 1000, rate=0.2, optimiser=adam)
    with capsys.disabled():
        junk = rates[:, INFORMATIVE:]
        print(
            f"\n{gradient}: informative at most {rates[:, :INFORMATIVE].max():.3f}, junk {junk.mean():.2f} on average"
        )
    assert_separated(rates)
