"""Masks per datum must meet the data: plates of data, the data first, one mask for each datum."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    BayesianModule,
    TraceDropout_ELBO,
)
from tests.support.scenarios import regression_data


def test_masks_per_datum_need_a_data_plate():
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y):
        pyro.sample("obs", dist.Normal(net(x).squeeze(-1), 1.0).to_event(1), obs=y)

    guide = AutoBernoulliDropout(model)
    x, y = torch.randn(5, 3), torch.randn(5)
    with pytest.raises(ValueError, match=r"'obs' is in no data plate.*pyro.plate.*masks=\"draw\""):
        TraceDropout_ELBO().loss(model, guide, x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, guide, x, y))


@pytest.mark.parametrize("case", ["sequence first", "data in rows"])
def test_masks_per_datum_need_the_data_first(case):
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y):
        if case == "sequence first":
            mean = net(x.transpose(0, 1)).sum((0, -1))
        else:
            mean = net(x.reshape(-1, 3)).reshape(x.shape[:2]).sum(1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    guide = AutoBernoulliDropout(model)
    x, y = torch.randn(5, 7, 3), torch.randn(5)
    with pytest.raises(ValueError, match=r"'weight' drew masks for (7|35) data, but the data plates are \{'data': 5\}"):
        TraceDropout_ELBO().loss(model, guide, x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, guide, x, y))


def test_one_datum_that_depends_on_two_masks():
    x, y = regression_data(5)
    net = BayesianModule(nn.Linear(3, 1).double())

    class Difference(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, y):
            mean = self.net(x).squeeze(-1) - self.net(x[:1]).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    model = Difference()
    with pytest.raises(ValueError, match="drew a mask for one datum and masks for 5"):
        TraceDropout_ELBO().loss(model, AutoBernoulliDropout(model), x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, AutoBernoulliDropout(model), x, y))
