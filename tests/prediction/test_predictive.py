"""Prediction: the values of stock ``Predictive``, streamed measures, masks per draw and per datum, seeds, modes."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import ExpTransform

from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, BayesianModule, DropoutPredictive
from pyro_dropout.metrics import predictive_log_likelihood, predictive_moments
from tests.support.predictions import DRAWS, SMALL, fitted
from tests.support.scenarios import FixedNoise, assert_same_mean, double_mlp, regression_data


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
    with pytest.raises(ValueError, match="masks 3 input units"):
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


def test_a_progress_bar_counts_predictions(capsys):
    model, guide, x, _ = fitted()
    DropoutPredictive(model, guide=guide, num_samples=DRAWS, max_memory=SMALL, progress=True).moments(x)
    assert "2.00k/2.00k" in capsys.readouterr().err


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
    with pytest.raises(ValueError, match="num_samples must be a positive integer, but found 0"):
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


def test_a_model_that_does_not_broadcast_over_draws_is_told_what_to_do():
    def model(x, group, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))
        shift = pyro.sample("shift", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        mean = nn.functional.linear(x, weight)[..., 0] + shift[group]
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    torch.manual_seed(0)
    x, group = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    guide = AutoBernoulliDropout(model, rate=0.2)
    guide(x, group, torch.randn(6))
    with pytest.raises(ValueError, match=r"index . is out of bounds") as raised:
        DropoutPredictive(model, guide=guide, num_samples=2)(x, group)
    assert "needs parallel=False" in raised.value.__notes__[0]
    assert DropoutPredictive(model, guide=guide, num_samples=2, parallel=False)(x, group)["obs"].shape == (2, 6)
