"""Draws that are kept and called again: functions that stay as they are, by index, with gradients, of any origin."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive
from pyro.nn import PyroModule
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive
from tests.support.predictions import DRAWS, SMALL, count_runs, fitted
from tests.support.scenarios import FixedNoise, PlainPyroBNN, assert_same_mean, double_mlp, regression_data


def test_kept_draws_are_functions_that_training_does_not_change():
    model, guide, x, _ = fitted()
    kept = DropoutPredictive(model, guide=guide, num_samples=5).draw(x)
    before = kept(x)["mean"]
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    new = torch.cat([x, torch.randn(7, 3, dtype=x.dtype)])
    after = kept(new)["mean"]
    torch.testing.assert_close(after[:, :50], before)
    assert len(kept) == 5
    for index in (3, -2):
        torch.testing.assert_close(kept[index](new)["mean"], after[3:4])
    torch.testing.assert_close(kept[1:3](new)["mean"], after[1:3])
    assert len({tuple(row) for row in after[:, :3].tolist()}) == 5
    with pytest.raises(IndexError, match="draw 5 of 5"):
        kept[5]


@pytest.mark.parametrize("index", [np.int64(3), torch.tensor(3), 3])
def test_draws_by_any_index(index):
    model, guide, x, _ = fitted()
    kept = DropoutPredictive(model, guide=guide, num_samples=5).draw(x)
    torch.testing.assert_close(kept[index](x)["mean"], kept(x)["mean"][3:4])
    assert not any(value.requires_grad for value in kept.posterior_samples.values())
    torch.testing.assert_close(copy.deepcopy(kept)(x)["mean"], kept(x)["mean"])


def test_gradients_through_a_kept_function():
    """What a search for the best input needs: condition the model on the draw."""
    model, guide, x, _ = fitted()
    function = DropoutPredictive(model, guide=guide, num_samples=5).draw(x)[2]
    at = x[:1].clone().requires_grad_()
    weights = {name: value[0] for name, value in function.posterior_samples.items()}
    trace = poutine.trace(poutine.condition(model, data=weights)).get_trace(at)
    trace.nodes["mean"]["value"].sum().backward()
    step = 1e-6 * torch.eye(3, dtype=x.dtype)
    slope = (function(x[:1] + step)["mean"] - function(x[:1] - step)["mean"]).flatten() / 2e-6
    torch.testing.assert_close(at.grad.flatten(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("model", [PlainPyroBNN, lambda: Regression(3, 50, hidden=(8,))])
def test_one_draw_at_a_time(model):
    """For models that do not broadcast."""
    model, (x, y) = model(), regression_data(50, dtype=torch.float32)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    kept = DropoutPredictive(model, guide=guide, num_samples=6, parallel=False).draw(x)
    in_turn = kept(x)
    for name, value in DropoutPredictive(model, posterior_samples=kept.posterior_samples)(x).items():
        assert value.shape == in_turn[name].shape
        if name != "obs":
            torch.testing.assert_close(value, in_turn[name])


def test_samples_of_mcmc():
    model, x = FixedNoise(double_mlp(hidden=(2,)), size=20), regression_data(20)[0]
    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=2, disable_progbar=True)
    mcmc.run(x, x[:, 0])
    samples = mcmc.get_samples()
    found = DropoutPredictive(model, posterior_samples=samples, max_memory=SMALL).moments(x)["obs"].mean
    expected = []
    for k in range(5):
        one = {name: value[k] for name, value in samples.items()}
        trace = poutine.trace(poutine.condition(model, data=one)).get_trace(x)
        expected.append(trace.nodes["obs"]["fn"].mean)
    torch.testing.assert_close(found, torch.stack(expected).mean(0))


class PerDatum(PyroModule):
    """A latent for each datum, beside the network."""

    def __init__(self):
        super().__init__()
        self.net = BayesianModule(double_mlp())

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            shift = pyro.sample("shift", dist.Normal(mean.new_zeros(()), 1.0))
            pyro.deterministic("shifted", mean + shift, event_dim=0)
            return pyro.sample("obs", dist.Normal(mean + shift, 0.1), obs=y)


def test_latents_of_each_datum_go_with_their_datum():
    model, x = PerDatum(), regression_data(900)[0]
    dropout = AutoBernoulliDropout(poutine.block(model, hide=["shift"]), rate=0.3)

    def guide(x, y=None):
        dropout(x, y)
        with pyro.plate("data", len(x)):
            pyro.sample("shift", dist.Normal(100 * x[:, 0], 0.1))

    guide(x, x[:, 0])
    kept = DropoutPredictive(model, guide=guide, num_samples=DRAWS, max_memory=SMALL).draw(x)
    calls, hook = count_runs(model)
    found = kept(x)
    hook.remove()
    assert len(calls) > 2 * DRAWS  # parts of the data
    torch.testing.assert_close(found["shift"], kept.posterior_samples["shift"])
    assert bool(((found["shift"] - 100 * x[:, 0]).abs() < 1).all())
    assert_same_mean(found["obs"] - found["shifted"], 0.0)
    with pytest.raises(ValueError, match="latent 'shift' was drawn for 900 data, but there are 899"):
        kept(x[1:])


class Recurrent(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = BayesianModule(nn.LSTM(3, 4, batch_first=True).double(), event_dim=2)

    def forward(self, x, y=None):
        out, _ = self.net(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(out[..., -1, 0], 1.0), obs=y)


def test_recurrent_networks():
    model, x = Recurrent(), torch.randn(9, 5, 3, dtype=torch.float64)
    guide = AutoBernoulliDropout(model, rate=0.4)
    guide(x, x[:, 0, 0])
    kept = DropoutPredictive(model, guide=guide, num_samples=4, max_memory=200_000).draw(x)
    found = kept.moments(x)["obs"].mean
    torch.testing.assert_close(torch.stack([kept[k].moments(x)["obs"].mean for k in range(4)]).mean(0), found)


def test_recurrent_networks_one_draw_at_a_time():
    model, x = Recurrent(), torch.randn(9, 5, 3, dtype=torch.float64)
    guide = AutoBernoulliDropout(model, rate=0.4)
    guide(x, x[:, 0, 0])
    options = {"guide": guide, "num_samples": 4}
    in_turn = DropoutPredictive(model, **options, parallel=False).draw(x)
    together = DropoutPredictive(model, posterior_samples=in_turn.posterior_samples)
    torch.testing.assert_close(in_turn.moments(x)["obs"].mean, together.moments(x)["obs"].mean)


def test_networks_in_a_plate():
    class Several(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = BayesianModule(double_mlp(), event_dim=1)

        def forward(self, x, y=None):
            with pyro.plate("networks", 3, dim=-2):
                mean = self.net(x).squeeze(-1)
                with pyro.plate("data", x.shape[-2], dim=-1):
                    return pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)

    model, x = Several(), regression_data(30)[0]
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, x[:, 0].expand(3, 30))
    for memory in (2**30, SMALL):
        kept = DropoutPredictive(model, guide=guide, num_samples=5, max_memory=memory, seed=0).draw(x)
        found = kept(x)["obs"]
        assert found.shape == (5, 3, 30)
        stock = Predictive(model, posterior_samples=dict(kept.posterior_samples), parallel=True)(x)["obs"]
        assert (found - stock).abs().max() < 1.2  # noise of 0.1
        assert found.std(0).max() > 0.2
