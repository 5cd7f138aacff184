"""NaN and infinities raise before the optimiser, name where they come from, and change nothing."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, TraceDropout_ELBO
from tests.support.scenarios import regression_data


def snapshot(guide):
    return {n: p.detach().clone() for n, p in guide.named_parameters()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "y", "parameter"])
@pytest.mark.parametrize("validate", [True, False])
def test_non_finite_input_raises_before_the_optimiser_and_changes_no_parameter(value, where, validate):
    x, y = regression_data(20, dtype=torch.float32)
    model = Regression(3, size=20)
    guide = AutoConcreteDropout(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceDropout_ELBO())
    svi.step(x, y)
    message = {
        "x": "argument 0 has 1 NaN",
        "y": "argument 1 has 1 NaN",
        "parameter": "parameter 'locs.net.0.weight_unconstrained' has 1",
    }
    bad_x, bad_y = x.clone(), y.clone()
    if where == "x":
        bad_x[3, 1] = value
    elif where == "y":
        bad_y[3] = value
    else:
        with torch.no_grad():
            guide.locs.net._modules["0"].weight_unconstrained[0, 0] = value
    before = snapshot(guide)
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=message[where] + ".*not changed"):
        svi.step(bad_x, bad_y)
    for name, parameter in guide.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0, equal_nan=True, msg=name)
    if where != "parameter":
        assert math.isfinite(svi.step(x, y))  # and nothing is left behind
        assert all(bool(torch.isfinite(p).all()) for p in guide.parameters())


def test_a_gradient_that_is_not_finite_raises_although_the_loss_is():
    loc = nn.Parameter(torch.zeros(1, 3))

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "obs", dist.Normal(nn.functional.linear(x, w).squeeze(-1).abs().sqrt(), 1.0), obs=torch.zeros(len(x))
            )

    guide = AutoBernoulliDropout(model, rate=0.0, init_loc_fn=lambda site: torch.zeros(1, 3))
    svi = SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO())
    with pytest.raises(ValueError, match=r"gradient of .*locs.w is not: .*no slope.*not changed"):
        svi.step(torch.ones(4, 3))
    assert guide.median()["w"].tolist() == loc.tolist()


def test_a_later_particle_that_fails_leaves_no_gradients_of_the_first():
    calls = []

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        calls.append(1)
        mean = nn.functional.linear(x, w).squeeze(-1) / (0.0 if len(calls) == 3 else 1.0)  # the first call is set-up
        with pyro.plate("data", len(x)), pyro.validation_enabled(False):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=torch.zeros(len(x)))

    guide = AutoBernoulliDropout(model, rate=0.0)
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="not changed"):
        TraceDropout_ELBO(2, vectorize_particles=False).loss_and_grads(model, guide, torch.ones(4, 3))
    assert all(p.grad is None for p in guide.parameters())
