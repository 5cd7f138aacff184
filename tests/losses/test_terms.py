"""The losses' terms of a latent site: its KL, entropy and scales; sites that have none."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, BayesianModule, TraceDropout_ELBO
from tests.support.scenarios import assert_same_mean, regression_data

F64 = torch.float64


def closed_form_kl(guide, prior):
    total = 0.0
    for name, rate in guide.rates().items():
        loc = guide.median()[name]
        keep = 1 - rate
        h = -(keep * keep.log() + rate * rate.log())
        total -= h * loc.shape[1] + (keep * prior.log_prob(loc / keep) + rate * prior.log_prob(loc * 0)).sum()
    return total.item()


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("particles", [1, 4])
def test_kl_is_the_same_whatever_batch_particles_and_masks(masks, particles):
    """With no data term (an observation that nothing explains) the loss is the KL."""
    net = BayesianModule(
        nn.Linear(3, 4).double(), prior=lambda name, p: dist.Normal(0.0, 1.0) if "weight" in name else None
    )

    def model(x):
        net(x)
        with pyro.plate("data", 50, subsample_size=len(x)):
            pyro.sample("obs", dist.Delta(torch.zeros(len(x))), obs=torch.zeros(len(x)))

    guide = AutoConcreteDropout(model, rate=0.3)
    x = torch.randn(7, 3, dtype=F64)
    loss = TraceDropout_ELBO(particles, masks=masks).loss(model, guide, x)
    assert loss == pytest.approx(closed_form_kl(guide, torch.distributions.Normal(0.0, 1.0)), rel=1e-6)


def test_kl_of_a_convolution_counts_channels():
    """PITFALLS 5: the number of masked units is the input channels, not pixels or kernel entries."""
    net = BayesianModule(nn.Conv2d(3, 4, 5, bias=False))

    def model(x):
        net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Delta(torch.zeros(len(x))), obs=torch.zeros(len(x)))

    guide = AutoBernoulliDropout(model, rate=0.3)
    loss = TraceDropout_ELBO().loss(model, guide, torch.randn(2, 3, 8, 8))
    loc = guide.median()["weight"]
    normal = torch.distributions.Normal(0.0, 1.0)
    h = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    expected = -3 * h - (0.7 * normal.log_prob(loc / 0.7) + 0.3 * normal.log_prob(loc * 0)).sum().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_scaled_priors_are_scaled():
    """poutine.scale around the network is a prior to that power, as in stock Trace_ELBO."""
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y):
        with pyro.poutine.scale(scale=0.1):
            mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    x, y = regression_data(6)
    for rest in (AutoDelta, AutoNormal):
        guide = AutoBernoulliDropout(model, rate=0.0, rest=rest)
        ours = torch.tensor([TraceDropout_ELBO().loss(model, guide, x, y) for _ in range(400)], dtype=F64)
        stock = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(400)], dtype=F64)
        assert_same_mean(ours, stock)


def test_a_masked_prior_is_masked_as_in_the_model():
    """The guide's q is not masked, so the closed form, which has one mask for both, does not apply."""

    def model():
        with pyro.poutine.mask(mask=torch.tensor(False)):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 1.0))

    loss = torch.tensor([TraceDropout_ELBO().loss(model, guide) for _ in range(2000)], dtype=F64)
    assert_same_mean(loss, torch.tensor(-0.5 * math.log(2 * math.pi * math.e), dtype=F64))  # minus q's entropy


# Errors


def test_a_latent_without_a_guide_raises():
    x, y = regression_data(5, dtype=torch.float32)
    model = Regression(3, size=5)
    guide = AutoBernoulliDropout(pyro.poutine.block(model, hide=["precision"]))
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match="'precision' of the model is not in the guide"),
    ):
        TraceDropout_ELBO().loss(model, guide, x, y)


def test_a_guide_site_that_is_not_reparametrised_raises():
    def model():
        pyro.sample("k", dist.Bernoulli(0.5))

    def guide():
        pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    with pytest.raises(NotImplementedError, match="'k' is Bernoulli, which is not reparametrised"):
        TraceDropout_ELBO().loss(model, guide)
