"""Prediction in parts: the values of stock ``Predictive``, within the bytes given, by draws that can be kept."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import ExpTransform

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, BayesianModule, DropoutPredictive
from pyro_dropout._memory import PeakMemory
from pyro_dropout.metrics import predictive_log_likelihood, predictive_moments
from pyro_dropout.prediction import predictive
from tests.support.scenarios import FixedNoise, PlainPyroBNN, assert_same_mean, double_mlp, regression_data

DRAWS = 40
SMALL = 40_000  # bytes: forces parts of both draws and data for the models below


def fitted(model=None, guide=AutoBernoulliDropout, n=50, rate=0.3, **options):
    """A model and its guide, set up with observed data."""
    x, y = regression_data(n)
    model = model or Regression(3, n, hidden=(8,)).double()
    guide = guide(model, rate=rate, **options) if guide is not AutoNormal else AutoNormal(model)
    guide(x, y)
    return model, guide, x, y


def count_runs(model):
    """Calls of the model's network: how many parts there were."""
    calls = []
    hook = model.net.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls, hook


@pytest.mark.parametrize("memory", [2**30, SMALL])
@pytest.mark.parametrize("guide", [AutoBernoulliDropout, AutoConcreteDropout, AutoNormal])
def test_values_and_shapes_are_those_of_stock_predictive(guide, memory):
    model, guide, x, _ = fitted(guide=guide)
    predict = DropoutPredictive(model, guide=guide, num_samples=DRAWS, max_memory=memory)
    kept = predict.draw(x)
    stock = Predictive(model, posterior_samples=dict(kept.posterior_samples), parallel=True)(x)
    ours = kept(x)
    assert ours.keys() == stock.keys() | {"precision"}
    torch.testing.assert_close(ours["mean"], stock["mean"])
    assert ours["obs"].shape == stock["obs"].shape
    own = Predictive(model, guide=guide, num_samples=DRAWS, parallel=True)(x)
    assert all(value.shape == own[name].shape for name, value in predict(x).items())
    assert predict(x)["precision"].shape == (DRAWS, 1)


def test_parts_give_what_the_whole_gives():
    model, guide, x, y = fitted()
    whole = DropoutPredictive(model, guide=guide, num_samples=DRAWS).draw(x)
    parts = DropoutPredictive(model, posterior_samples=whole.posterior_samples, max_memory=SMALL)
    calls, hook = count_runs(model)
    mean = parts(x)["mean"]
    assert len(calls) > 12  # six of them to find out about shapes and bytes
    hook.remove()
    torch.testing.assert_close(mean, whole(x)["mean"])
    for a, b in zip(parts.moments(x)["obs"], whole.moments(x)["obs"], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(parts.log_likelihood(x, y)["obs"], whole.log_likelihood(x, y)["obs"])


@pytest.mark.parametrize("memory", [2**30, SMALL])
def test_streamed_moments_and_log_likelihoods_are_those_of_all_draws(memory):
    """Against the measures of kept draws, in turn from draws of stock shapes."""
    model, guide, x, y = fitted(rest=AutoNormal)
    kept = DropoutPredictive(model, guide=guide, num_samples=DRAWS, max_memory=memory).draw(x)
    draws = kept(x)
    expected = predictive_moments(draws["mean"], 1 / draws["precision"])
    found = kept.moments(x)
    for a, b in zip(found["obs"], expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found["mean"].epistemic, expected.epistemic)
    assert not found["mean"].aleatoric.any()
    density = dist.Normal(draws["mean"], draws["precision"].rsqrt()).log_prob(y)
    torch.testing.assert_close(kept.log_likelihood(x, y)["obs"], predictive_log_likelihood(density))


def test_guides_whose_draws_do_not_fit_are_drawn_in_blocks(monkeypatch):
    """Dense weights: a draw has 41 numbers, and half of the memory holds a few hundred of them."""
    model, guide, x, _ = fitted(guide=AutoNormal)
    truth = DropoutPredictive(model, guide=guide, num_samples=4000, seed=0)
    blocks = DropoutPredictive(model, guide=guide, num_samples=4000, max_memory=400_000)
    numbers = []
    drawn = predictive.drawn
    monkeypatch.setattr(predictive, "drawn", lambda _, number, *args: numbers.append(number) or drawn(_, number, *args))
    mean = blocks(x)["mean"]
    assert sum(numbers[-5:]) < sum(numbers) < 6000  # some to find out
    assert max(numbers) < 1500
    assert_same_mean(mean, truth(x)["mean"])
    assert_same_mean((mean - mean.mean(0)) ** 2, truth.moments(x)["obs"].epistemic)
    moments = DropoutPredictive(model, guide=guide, num_samples=4000, max_memory=400_000).moments(x)["mean"]
    assert_same_mean(mean, moments.mean)


@pytest.mark.parametrize(
    ("guide", "memory"),
    [
        pytest.param(AutoBernoulliDropout, 100_000, marks=pytest.mark.slow),
        (AutoBernoulliDropout, 1_000_000),
        (AutoNormal, 100_000),
        pytest.param(AutoNormal, 1_000_000, marks=pytest.mark.slow),
    ],
)
def test_no_more_bytes_than_given(guide, memory):
    model, guide, x, _ = fitted(Regression(3, 2000, hidden=(50, 50)).double(), guide, n=2000)
    predict = DropoutPredictive(model, guide=guide, num_samples=50, max_memory=memory)
    if isinstance(guide, AutoNormal) and memory == 100_000:
        with pytest.raises(ValueError, match=r"needs about [\d,]+ bytes, but max_memory leaves 50,000"):
            predict.moments(x)
        return
    with PeakMemory() as used:
        predict.moments(x)
    result = 4 * 2 * 2000 * 8  # of two sites, four numbers per datum
    assert used.peak < memory + result + 4 * 2000 * 8  # and what the last division takes
    assert used.peak > 0.3 * memory  # which is made use of
    assert 30 * memory < 50 * 2000 * 50 * 8  # one layer's activations of all


def test_a_bound_that_nothing_fits_into_raises():
    model, guide, x, _ = fitted()
    message = r"one draw of the guide for all data needs about [\d,]+ bytes, but max_memory leaves 150 for it"
    with pytest.raises(ValueError, match=message):
        DropoutPredictive(model, guide=guide, num_samples=10, max_memory=300)(x)
    message = r"one draw of the model for 3 data needs about [\d,]+ bytes, but max_memory leaves 300 for it"
    with pytest.raises(ValueError, match=message):
        DropoutPredictive(model, guide=guide, num_samples=10, max_memory=300, masks="datum")(x)


def test_a_function_draw_is_the_same_for_the_same_input_and_masks_per_datum_are_not():
    """PITFALLS 14: both are offered, and differ."""
    model, guide, x, _ = fitted()
    twice = torch.cat([x[:1]] * 6)
    functions = DropoutPredictive(model, guide=guide, num_samples=30)(twice)["mean"]
    torch.testing.assert_close(functions, functions[:, :1].expand(30, 6))
    assert functions[:, 0].std() > 0.01
    data = DropoutPredictive(model, guide=guide, num_samples=30, masks="datum")(twice)["mean"]
    assert data.shape == (30, 6)
    assert (data.std(1) > 0.01).float().mean() > 0.8


@pytest.mark.parametrize("memory", [2**30, SMALL])
def test_masks_per_datum_have_the_same_moments_of_each_datum(memory):
    model, guide, x, y = fitted()
    functions = DropoutPredictive(model, guide=guide, num_samples=4000)(x)["mean"]
    predict = DropoutPredictive(model, guide=guide, num_samples=4000, masks="datum", max_memory=memory * 10)
    data = predict(x)
    assert set(data) == {"mean", "obs"}
    assert_same_mean(data["mean"], functions)
    assert_same_mean(data["mean"].square(), functions.square())
    assert torch.corrcoef(data["mean"][:, :10].T).abs().tril(-1).max() < 5 / 4000**0.5
    assert torch.corrcoef(functions[:, :10].T).abs().tril(-1).max() > 0.5
    assert predict.moments(x)["obs"].mean.shape == y.shape


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


def test_a_seed_repeats_the_functions_whatever_the_parts_and_leaves_other_random_numbers_alone():
    model, guide, x, _ = fitted()
    options = {"guide": guide, "num_samples": DRAWS, "seed": 7}
    state = torch.get_rng_state()
    first = DropoutPredictive(model, **options)(x)
    assert torch.equal(torch.get_rng_state(), state)
    again = DropoutPredictive(model, **options)(x)
    assert torch.equal(first["obs"], again["obs"])
    torch.randn(3)
    for inputs in (x, x[:9]):
        small = DropoutPredictive(model, **options, max_memory=SMALL)(inputs)
        torch.testing.assert_close(small["mean"], first["mean"][:, : len(inputs)])
    torch.testing.assert_close(DropoutPredictive(model, **options).draw(x)(x)["mean"], first["mean"])
    other = DropoutPredictive(model, **{**options, "seed": 8})(x)
    assert not torch.equal(other["mean"], first["mean"])
    unseeded = DropoutPredictive(model, guide=guide, num_samples=DRAWS)
    assert not torch.equal(unseeded(x)["mean"], unseeded(x)["mean"])
    pyro.set_rng_seed(3)
    a = unseeded(x)["obs"]
    pyro.set_rng_seed(3)
    assert torch.equal(a, unseeded(x)["obs"])


def batch_norm_network():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.9), nn.Linear(8, 1)).double()


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_networks_run_in_evaluation_mode_and_are_left_as_they_were(closure, parallel):
    """PITFALLS 15: only the guide is random, no statistics change; also for a model that is a plain function."""
    model, x = FixedNoise(batch_norm_network(), size=50, prior=dist.Normal(0.0, 1.0)), regression_data(50)[0]
    guide = AutoBernoulliDropout(model, rate={"net.0.weight": 0.0, "net.4.weight": 0.0})
    with torch.no_grad():
        model.net(x * 3 + 1)  # gives the statistics something to remember
        guide(x, x[:, 0])
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    flags = [module.training for module in model.modules()]
    function = (lambda x, y=None: model(x, y)) if closure else model
    with_all = DropoutPredictive(
        function, guide=guide, num_samples=3, return_sites=["_RETURN", "obs"], parallel=parallel
    )
    mean = with_all.moments(x)["obs"].mean
    alone = with_all.moments(x[:1])["obs"].mean
    torch.testing.assert_close(alone, mean[:1])  # not normalised by the batch
    assert with_all.moments(x)["obs"].epistemic.max() < 1e-20  # neither nn.Dropout nor masks
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    plain = batch_norm_network().eval()
    plain.load_state_dict({**model.net.net.state_dict(), **{n[4:]: v for n, v in guide.median(x).items()}})
    torch.testing.assert_close(mean, plain(x).squeeze(-1))


def test_flags_are_restored_after_an_error():
    model, guide, x, _ = fitted()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        DropoutPredictive(model, guide=guide, num_samples=3)(x[:, :2])
    assert all(module.training for module in model.modules())


class Classes(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = BayesianModule(nn.Linear(3, 4).double())

    def forward(self, x, y=None):
        logits = self.net(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Categorical(logits=logits), obs=y)


def test_moments_of_labels_are_those_of_their_indicators():
    model, x = Classes(), regression_data(30)[0]
    guide = AutoBernoulliDropout(model, rate=0.5)
    guide(x, torch.zeros(30, dtype=torch.long))
    kept = DropoutPredictive(model, guide=guide, num_samples=20, max_memory=SMALL).draw(x)
    weight, bias = kept.posterior_samples["net.weight"].dense(), kept.posterior_samples["net.bias"]
    probs = torch.stack([(x @ w.T + b).softmax(-1) for w, b in zip(weight, bias, strict=True)])
    found = kept.moments(x)["obs"]
    torch.testing.assert_close(found.mean, probs.mean(0))
    torch.testing.assert_close(found.epistemic, probs.var(0, unbiased=False))
    torch.testing.assert_close(found.variance, found.mean * (1 - found.mean))  # of an indicator
    assert kept(x)["obs"].dtype == torch.long


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


def test_sites_on_demand():
    model, guide, x, _ = fitted()
    sites = ["net.0.weight", "_RETURN", "mean"]
    found = DropoutPredictive(model, guide=guide, num_samples=4, return_sites=sites)(x)
    assert list(found) == sites
    assert found["net.0.weight"].shape == (4, 1, 8, 3)
    assert found["_RETURN"].shape == (4, 50)
    assert math.isclose((found["net.0.weight"] == 0).double().mean().item(), 0.3, abs_tol=0.3)
    values = DropoutPredictive(model, guide=guide, num_samples=4, return_sites=["mean"]).moments(x)
    assert list(values) == ["mean"]


def test_data_by_name():
    """An argument as long as the data that is none of them."""

    def model(x, table, y=None):
        factor = pyro.sample("factor", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            w = pyro.deterministic("w", factor * table.sum() * x[..., 0], event_dim=0)
            return pyro.sample("obs", dist.Normal(w, 1.0), obs=y)

    x, table = torch.randn(30, 2), torch.arange(30.0)
    samples = {"factor": torch.ones(5)}
    predict = DropoutPredictive(model, samples, return_sites=["w"], max_memory=3000, data=[0])
    torch.testing.assert_close(predict(x, table)["w"], (435 * x[:, 0]).expand(5, 30))
    torch.testing.assert_close(predict(x, table=table)["w"], (435 * x[:, 0]).expand(5, 30))
    with pytest.raises(ValueError, match=r"data names the arguments \['z'\], but found tensors at \[0, 1\]"):
        DropoutPredictive(model, samples, data=["z"])(x, table)


def test_a_progress_bar_counts_predictions(capsys):
    model, guide, x, _ = fitted()
    DropoutPredictive(model, guide=guide, num_samples=DRAWS, max_memory=SMALL, progress=True).moments(x)
    assert "2.00k/2.00k" in capsys.readouterr().err


def whole_batch(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))
    mean = (x @ w.mT).squeeze(-1)
    pyro.deterministic("total", mean.sum())
    pyro.deterministic("pairs", mean.unsqueeze(-1) * mean, event_dim=2)
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def test_sites_that_parts_of_the_data_do_not_add_up_to():
    samples = {"w": torch.randn(50, 1, 3)}
    x = torch.randn(40, 3)
    message = r"site 'pairs' has shape \(2, 2\) or \(3, 3\) .* data=\(\) to take them whole"
    with pytest.raises(ValueError, match=message):
        DropoutPredictive(whole_batch, samples, parallel=False)(x)
    with pytest.raises(ValueError, match=r"site 'total' of shape .* has no dimension that grows with the data"):
        DropoutPredictive(whole_batch, samples, parallel=False, return_sites=["total"], max_memory=2000)(x)
    found = DropoutPredictive(whole_batch, samples, parallel=False, data=(), max_memory=10**6)(x)
    torch.testing.assert_close(found["total"].flatten(), (samples["w"].squeeze(1) @ x.T).sum(-1))
    with pytest.raises(ValueError, match="one draw of the model for all data needs"):
        DropoutPredictive(whole_batch, samples, parallel=False, data=(), max_memory=2000)(x)


def no_moments(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.TransformedDistribution(dist.Normal(x[:, 0], 1.0), [ExpTransform()]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, g, x: DropoutPredictive(m, num_samples=3), ValueError, "give a guide or posterior_samples"),
        (lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3, masks="row"), ValueError, "but found 'row'"),
        (
            lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3, masks="datum", parallel=False),
            ValueError,
            "needs a guide, and parallel=True",
        ),
        (
            lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3, masks="datum").draw(x),
            ValueError,
            "no draws to keep",
        ),
        (
            lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3, return_sites=["mu"])(x),
            ValueError,
            r"return_sites names 'mu', but the model has the sites \['net.0.weight'",
        ),
        (
            lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3, masks="datum", return_sites=["precision"])(x),
            ValueError,
            r"has \['net.0.bias', .* anew for each part",
        ),
        (lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3)[0], TypeError, r"predictive.draw\(x\)\[index\]"),
        (lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3)(x[:0]), ValueError, "no rows"),
        (
            lambda m, g, x: DropoutPredictive(m, guide=g, num_samples=3).log_likelihood(x),
            ValueError,
            "needs the observations among the arguments",
        ),
        (
            lambda m, g, x: DropoutPredictive(no_moments, {"w": torch.zeros(3)}).moments(x),
            NotImplementedError,
            "site 'obs' has a TransformedDistribution, which has no moments",
        ),
    ],
)
def test_errors(call, error, message):
    model, guide, x, _ = fitted()
    with pytest.raises(error, match=message):
        call(model, guide, x)


def test_samples_must_be_of_the_model():
    with pytest.raises(
        ValueError, match=r"none of the samples \['v'\] is of the model, which has the sites \['w', 'obs'\]"
    ):
        DropoutPredictive(no_moments, {"v": torch.zeros(3)})(torch.randn(4, 1))
    with pytest.raises(ValueError, match=r"different numbers of draws: {'w': 3, 'v': 4}"):
        DropoutPredictive(no_moments, {"w": torch.zeros(3), "v": torch.zeros(4)})
    with pytest.raises(TypeError, match="take lists"):
        DropoutPredictive(no_moments, {"w": torch.zeros(3)}, return_sites="obs")
    with pytest.raises(ValueError, match="num_samples must be positive, but found 0"):
        DropoutPredictive(no_moments, guide=no_moments, num_samples=0)


def test_masked_observations_do_not_count_and_factors_are_none():
    net = BayesianModule(double_mlp())

    def model(x, y=None, seen=True):
        mean = net(x).squeeze(-1)
        pyro.factor("penalty", mean.new_zeros(()))
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(20)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    predict = DropoutPredictive(model, guide=guide, num_samples=4, seed=0)
    seen = torch.arange(20) < 10
    found = predict.log_likelihood(x, torch.where(seen, y, -99.0), seen)
    assert list(found) == ["obs"]
    assert not found["obs"][10:].any()
    torch.testing.assert_close(found["obs"][:10], predict.log_likelihood(x, y)["obs"][:10])
    assert list(predict.moments(x)) == ["obs"]


def test_a_model_that_mixes_data_is_not_taken_in_parts():
    net = BayesianModule(double_mlp())

    def model(x, y=None):
        mean = net((x - x.mean(0)) / x.std(0)).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(900)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    with pytest.raises(ValueError, match=r"'obs' has another distribution for a datum with other data .* data=\(\)"):
        DropoutPredictive(model, guide=guide, num_samples=4, max_memory=SMALL).moments(x)
    whole = DropoutPredictive(model, guide=guide, num_samples=4, max_memory=10**6, data=(), seed=0).moments(x)
    enough = DropoutPredictive(model, guide=guide, num_samples=4, seed=0).moments(x)  # no parts, nothing to refuse
    torch.testing.assert_close(whole["obs"].mean, enough["obs"].mean)


def test_memory_that_grows_faster_than_the_data():
    net = BayesianModule(double_mlp())

    def model(x, y=None):
        mean = net(x).squeeze(-1) + 0 * torch.cdist(x, x).amax()
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(2000)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x[:5], y[:5])
    with PeakMemory() as used:
        DropoutPredictive(model, guide=guide, num_samples=4, max_memory=10**6).moments(x)
    assert used.peak < 10 * 10**6  # all data at once: 32 MB


@pytest.mark.parametrize("index", [np.int64(3), torch.tensor(3), 3])
def test_draws_by_any_index(index):
    model, guide, x, _ = fitted()
    kept = DropoutPredictive(model, guide=guide, num_samples=5).draw(x)
    torch.testing.assert_close(kept[index](x)["mean"], kept(x)["mean"][3:4])
    assert not any(value.requires_grad for value in kept.posterior_samples.values())
    torch.testing.assert_close(copy.deepcopy(kept)(x)["mean"], kept(x)["mean"])


def test_recurrent_networks_one_draw_at_a_time():
    model, x = Recurrent(), torch.randn(9, 5, 3, dtype=torch.float64)
    guide = AutoBernoulliDropout(model, rate=0.4)
    guide(x, x[:, 0, 0])
    options = {"guide": guide, "num_samples": 4}
    in_turn = DropoutPredictive(model, **options, parallel=False).draw(x)
    together = DropoutPredictive(model, posterior_samples=in_turn.posterior_samples)
    torch.testing.assert_close(in_turn.moments(x)["obs"].mean, together.moments(x)["obs"].mean)


def test_masks_per_datum_with_a_deterministic_site_outside_the_plate():
    model = FixedNoise(double_mlp(), size=50)

    def function(x, y=None):
        pyro.deterministic("input", x)
        return model(x, y)

    x, y = regression_data(50)
    guide = AutoBernoulliDropout(function, rate=0.3)
    guide(x, y)
    found = DropoutPredictive(function, guide=guide, num_samples=6, masks="datum")(x)
    assert found["obs"].shape == (6, 50)


def test_sites_of_another_length_than_the_data_need_them_whole():
    net = BayesianModule(double_mlp())

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        pyro.deterministic("steps", mean.diff(dim=-1))
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(20)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    with pytest.raises(ValueError, match=r"'steps' has shape \(1,\) or \(2,\) .* data=\(\) to take them whole"):
        DropoutPredictive(model, guide=guide, num_samples=4)(x)
    assert DropoutPredictive(model, guide=guide, num_samples=4, data=())(x)["steps"].shape == (4, 1, 19)


RSS = """
import sys, torch, pyro
from pathlib import Path
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive

def status(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
x = torch.randn(1000, 13)
model = Regression(13, 1000, (1024, 1024))
guide = AutoBernoulliDropout(model, rate=0.1)
guide(x, x[:, 0])
DropoutPredictive(model, guide=guide, num_samples=3, max_memory=50 * 2**20).moments(x[:50])  # libraries load
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
DropoutPredictive(model, guide=guide, num_samples=int(sys.argv[1]), max_memory=100 * 2**20).moments(x)
print((status("VmHWM") - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell a process's peak memory")
def test_the_process_grows_by_no_more_than_the_bound():
    """As the operating system counts, with the allocator's losses: activations of all draws would take 400 MiB."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", RSS, "50"]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    x, y = (t.cuda() for t in regression_data(500))
    model = Regression(3, 500, hidden=(50,)).double().cuda()
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    predict = DropoutPredictive(model, guide=guide, num_samples=100, max_memory=10**6, seed=1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    moments = predict.moments(x)
    assert torch.cuda.max_memory_allocated() - before < 2 * 10**6
    assert moments["obs"].mean.is_cuda
    np.testing.assert_allclose(predict(x)["mean"].mean(0).cpu(), moments["obs"].mean.cpu())
