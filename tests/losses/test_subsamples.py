"""Guide and model take the same rows of a subsampled plate, or the loss says so."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule, TraceDropout_ELBO

N, F64 = 30, torch.float64


def model_of(net, local):
    def model(x, y, index):
        mean = net(x[index]).squeeze(-1)
        with pyro.plate("data", N, subsample=index):
            offset = pyro.sample("offset", dist.Normal(torch.zeros((), dtype=F64), 1.0)) if local else 0.0
            return pyro.sample("obs", dist.Normal(mean + offset, 0.5), obs=y[index])

    return model


def case(local=True, **kwargs):
    torch.manual_seed(0)
    x = torch.randn(N, 3, dtype=F64)
    y = x.sum(-1) + 100 * torch.arange(N)  # an offset of each datum
    net = BayesianModule(nn.Linear(3, 1).double())
    model = model_of(net, local)
    guide = AutoBernoulliDropout(model, rate=0.0, **kwargs)
    return model, guide, x, y


def test_an_index_that_the_guide_draws_itself_is_refused():
    model, guide, x, y = case()
    with pytest.raises(ValueError, match=r"index of its own for plate 'data'.*create_plates"):
        TraceDropout_ELBO(masks="draw").loss(model, guide, x, y, torch.arange(5))


def test_with_create_plates_the_rows_are_the_same():
    def plates(x, y, index):
        return pyro.plate("data", N, subsample=index)

    model, guide, x, y = case(create_plates=plates)
    loss = TraceDropout_ELBO(masks="draw")
    index = torch.arange(5)
    loss.set_up(model, guide, x, y, index)
    named = dict(guide.named_parameters())
    with torch.no_grad():
        named["rest.offset_unconstrained"].copy_(100.0 * torch.arange(N))
    weight, bias = named["locs.weight_unconstrained"], named["rest.bias_unconstrained"]
    for index in (torch.arange(5), torch.tensor([29, 3, 11, 0, 7])):
        offset = 100.0 * index
        normal = dist.Normal(torch.zeros((), dtype=F64), 1.0)
        residual = y[index] - x[index] @ weight[0] - bias - offset  # of its own offset: small
        data = dist.Normal(residual.new_zeros(()), 0.5).log_prob(residual) + normal.log_prob(offset)
        expected = -N / 5 * data.sum() - normal.log_prob(weight).sum() - normal.log_prob(bias).sum()
        assert loss.loss(model, guide, x, y, index) == pytest.approx(expected.item())


def test_a_plate_without_latents_needs_no_index_of_the_guide():
    model, guide, x, y = case(local=False)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, guide, x, y, torch.arange(5)))
