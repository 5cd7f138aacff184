"""Dropout guides under every stock Pyro tool, with one model and no edit."""

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, TraceDropout_ELBO, init_to_module
from pyro_dropout.weights import MaskedWeight
from tests.support.fits import train
from tests.support.scenarios import PlainPyroBNN, assert_same_mean


@pytest.mark.parametrize("local", [False, True], ids=["global store", "module local"])
def test_one_model_object_under_every_stock_tool(local, data):
    x, y = data
    with pyro.settings.context(module_local_params=local):
        model = Regression(3, size=20, hidden=(4,))
        for make in (AutoBernoulliDropout, AutoConcreteDropout):
            guide = make(model)
            for loss in (TraceDropout_ELBO(), TraceDropout_ELBO(2), Trace_ELBO(), TraceGraph_ELBO()):
                train(model, guide, x, y, loss=loss)
            if make is AutoBernoulliDropout:
                train(model, guide, x, y, loss=TraceMeanField_ELBO())
            elbo = TraceDropout_ELBO()(model, guide)
            elbo(x, y)
            optimiser = torch.optim.Adam(elbo.parameters(), lr=0.02)
            before = guide.median()["net.0.weight"].clone()
            elbo(x, y).backward()
            optimiser.step()
            assert not torch.equal(before, guide.median()["net.0.weight"])
            for parallel in (False, True):
                draws = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(x)
                assert draws["obs"].shape == (6, 20)
                assert isinstance(draws["net.0.weight"], MaskedWeight)

        normal = AutoNormal(model, init_loc_fn=init_to_module(fallback=pyro.infer.autoguide.init_to_median))
        train(model, normal, x, y, loss=Trace_ELBO())
        train(model, normal, x, y, loss=Trace_ELBO(3, vectorize_particles=True))
        train(model, normal, x, y, loss=TraceMeanField_ELBO())
        for parallel in (False, True):
            assert Predictive(model, guide=normal, num_samples=6, parallel=parallel)(x)["obs"].shape == (6, 20)

        mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=4, warmup_steps=4, disable_progbar=True)
        mcmc.run(x, y)
        samples = mcmc.get_samples()
        assert samples["net.0.weight"].shape == (4, 4, 3)
        for parallel in (False, True):
            assert Predictive(model, posterior_samples=samples, parallel=parallel)(x)["obs"].shape == (4, 20)


@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
def test_a_users_own_bnn_takes_a_dropout_guide_with_no_edit(make, data):
    x, y = data
    model = PlainPyroBNN()
    guide = make(model)
    for loss in (TraceDropout_ELBO(), TraceDropout_ELBO(3), TraceDropout_ELBO(3, masks="draw"), Trace_ELBO()):
        losses = train(model, guide, x, y, steps=30, loss=loss)
        assert losses[-1] == losses[-1]
    assert sum(losses[-5:]) < 1e4
    for parallel in (False, True):
        draws = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(x)
        assert draws["obs"].shape == (6, 20)
    per_particle = Trace_ELBO(3, vectorize_particles=True)
    train(model, guide, x, y, loss=per_particle)


def test_inside_an_auto_guide_list(data):
    x, y = data
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoGuideList(model)
    guide.append(AutoConcreteDropout(poutine.block(model, expose=["net.0.weight", "net.0.bias"])))
    guide.append(AutoNormal(poutine.block(model, hide=["net.0.weight", "net.0.bias"]), init_loc_fn=init_to_module()))
    for loss in (TraceDropout_ELBO(), TraceDropout_ELBO(2, masks="draw"), Trace_ELBO()):
        assert all(loss == loss for loss in train(model, guide, x, y, loss=loss))
    assert set(guide[0].rates()) == {"net.0.weight"}
    assert guide.median(x, y).keys() == {f"net.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")} | {"precision"}


# Predictive


@pytest.mark.parametrize("parallel", [False, True])
def test_stock_predictive_gives_function_draws(parallel):
    """One mask for all data: equal inputs have equal outputs within a draw; and draws differ."""
    model = Regression(3, size=20, hidden=(8,))
    guide = AutoBernoulliDropout(model, rate=0.5)
    x = torch.ones(4, 3)
    guide(x)
    mean = Predictive(model, guide=guide, num_samples=50, parallel=parallel)(x)["mean"]
    mean = mean.reshape(50, 4)
    torch.testing.assert_close(mean, mean[:, :1].expand(50, 4))
    assert len(set(mean[:, 0].tolist())) > 10


def test_predictive_both_ways_has_the_distribution_of_dense_draws(data):
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoBernoulliDropout(model, rate=0.3)
    x = data[0][:3]
    guide(x)
    point = guide.median()
    z0, z1 = (torch.bernoulli(torch.full((4000, 1, n), 0.7)) / 0.7 for n in (3, 4))
    hidden = torch.relu((x * z0) @ point["net.0.weight"].T + point["net.0.bias"])
    by_hand = ((hidden * z1) @ point["net.2.weight"].T + point["net.2.bias"]).squeeze(-1).double()
    for parallel in (False, True):
        mean = Predictive(model, guide=guide, num_samples=4000, parallel=parallel)(x)["mean"].reshape(4000, 3).double()
        assert_same_mean(mean, by_hand)
        assert_same_mean(mean.square(), by_hand.square())


def test_predictive_keeps_one_loc_for_all_draws(data):
    model = Regression(3, size=20, hidden=(64,))
    guide = AutoBernoulliDropout(model)
    guide(*data)
    for parallel in (False, True):
        weight = Predictive(model, guide=guide, num_samples=100, parallel=parallel)(data[0])["net.0.weight"]
        assert weight.loc.numel() == 64 * 3
        assert weight.shape[0] == 100


@pytest.mark.parametrize("parallel", [False, True])
def test_kept_draws_do_not_change_when_training_goes_on(parallel, data):
    x, y = data
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoBernoulliDropout(model)
    train(model, guide, x, y)
    draws = Predictive(model, guide=guide, num_samples=5, parallel=parallel)(x)
    before = draws["net.0.weight"].dense().clone()
    rates = guide.rates()
    train(model, guide, x, y)
    assert torch.equal(draws["net.0.weight"].dense(), before)
    rates["net.0.weight"].fill_(0.9)
    assert guide.rates()["net.0.weight"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("points", [1, 7, 20, 33])
def test_prediction_on_fewer_or_more_points_than_the_training_set(points, data):
    model = Regression(3, size=20)
    guide = AutoConcreteDropout(model)
    guide(*data)
    for parallel in (False, True):
        draws = Predictive(model, guide=guide, num_samples=3, parallel=parallel)(torch.randn(points, 3))
        assert draws["obs"].shape == (3, points)
