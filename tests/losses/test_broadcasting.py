"""Whether a model broadcasts over members is found out at the first step, and is told."""

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    BayesianModule,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from tests.support.exact import Case
from tests.support.scenarios import regression_data

F64 = torch.float64


def test_indexing_from_the_left_is_found_out_at_the_first_step():
    x, y = regression_data(6)
    net = BayesianModule(nn.Linear(3, 1).double())

    class Model(PyroModule):
        def __init__(self, wrong):
            super().__init__()
            self.net, self.wrong = net, wrong

        def forward(self, x, y):
            mean = self.net(x)[:, 0] if self.wrong else self.net(x)[..., 0]
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    for wrong in (False, True):
        one = Model(wrong)
        for loss, learnable in (
            (TraceDropout_ELBO(), True),
            (RenyiDropout_ELBO(), False),
            (TraceDropout_ELBO(3), False),
        ):
            guide = AutoBernoulliDropout(one, learnable=learnable)
            for _ in range(2):
                if wrong:
                    with pytest.raises(ValueError, match=r"the model does not broadcast.*observed site 'obs'"):
                        loss.loss_and_grads(one, guide, x, y)
                else:
                    loss.loss_and_grads(one, guide, x, y)
        assert math.isfinite(TraceDropout_ELBO().loss(one, AutoBernoulliDropout(one), x, y))  # nothing is vectorised


def test_the_first_step_leaves_other_random_numbers_alone():
    case = Case()
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 what a user may have seeded
    TraceDropout_ELBO().loss_and_grads(case.model, case.guide, case.x, case.y)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_random_subsamples_do_not_look_like_a_model_that_does_not_broadcast():
    x, y = regression_data(20)
    net = BayesianModule(nn.Linear(3, 1).double())

    def model():
        mean = net(x).squeeze(-1)
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("obs", dist.Normal(mean[..., index], 1.0), obs=y[index])

    guide = AutoBernoulliDropout(model, learnable=True)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss_and_grads(model, guide))


@pytest.mark.parametrize("loss", [TraceDropout_ELBO(), RenyiDropout_ELBO(0.5, 3)], ids=["elbo", "alpha"])
def test_the_data_plate_must_be_the_rightmost(loss):
    """Elsewhere the data term would be counted once for every particle."""
    x, _ = regression_data(4)
    net = BayesianModule(nn.Linear(3, 2).double())

    def model(x):
        mean = net(x)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("outputs", 2, dim=-1):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=torch.zeros(len(x), 2, dtype=F64))

    guide = AutoBernoulliDropout(model, learnable=True)
    with pytest.raises(ValueError, match=r"more dimensions than plates.*dim -1|does not broadcast"):
        loss.loss_and_grads(model, guide, x)
