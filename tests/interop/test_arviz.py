"""The ArviZ export: groups, names, shapes and values, on ArviZ 0.x and through the interface of 1.x."""

import arviz_base
import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn

from examples.common.arviz_versions import BEFORE_1, az, elpd, names
from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    DropoutPredictive,
    TraceDropout_ELBO,
    from_pyro_svi,
)
from pyro_dropout.metrics import predictive_log_likelihood
from tests.support.scenarios import regression_data


def fit(guide_class=AutoConcreteDropout, steps=100, **kwargs):
    x, y = regression_data(30, dtype=torch.float32)
    model = Regression(3, size=30, hidden=(8,))
    svi = SVI(model, guide_class(model, **kwargs), pyro.optim.Adam({"lr": 0.03}), TraceDropout_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    return svi, x, y


@pytest.mark.parametrize("parallel", [True, False])
def test_groups_are_named_and_shaped_as_numpyros(parallel):
    svi, x, y = fit(steps=3)
    idata = from_pyro_svi(svi, model_args=(x, y), num_samples=40, prior=True, parallel=parallel)
    assert set(names(idata)) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }
    assert set(idata.posterior.data_vars) == {"mean", "precision", "net.0.weight.rate", "net.2.weight.rate"}
    assert idata.posterior["precision"].shape == (1, 40)
    assert idata.posterior["mean"].shape == (1, 40, 30)
    assert set(idata.prior.data_vars) == {"mean", "precision"}
    for group in ("posterior_predictive", "log_likelihood", "prior_predictive"):
        assert idata[group]["obs"].dims == ("chain", "draw", "data")
        assert idata[group]["obs"].shape == (1, 40, 30)
    assert idata.observed_data["obs"].dims == ("data",)
    np.testing.assert_array_equal(idata.observed_data["obs"], y)
    np.testing.assert_array_equal(idata.constant_data["x"], x)


def test_netcdf_keeps_everything(tmp_path):
    svi, x, y = fit(steps=3, per_unit=True)
    idata = from_pyro_svi(svi, model_args=(x, y), num_samples=10, weights=True, prior=True)
    idata.to_netcdf(tmp_path / "fit.nc")
    read = az.from_netcdf(tmp_path / "fit.nc")
    assert names(read) == names(idata)
    for group in names(idata):
        for name, values in idata[group].data_vars.items():
            np.testing.assert_array_equal(read[group][name], values)
            assert read[group][name].dims == values.dims
            assert read[group][name].dtype == values.dtype


@pytest.mark.parametrize("parallel", [True, False])
def test_log_likelihood_is_pointwise_unscaled_and_of_the_same_draw(parallel):
    svi, x, y = fit(rest=AutoNormal, steps=3)
    idata = from_pyro_svi(svi, model_args=(x, y), num_samples=25, parallel=parallel)
    mean, precision = (torch.tensor(idata.posterior[name].values[0]) for name in ("mean", "precision"))
    expected = torch.distributions.Normal(mean, precision.rsqrt().unsqueeze(-1)).log_prob(y)
    np.testing.assert_allclose(idata.log_likelihood["obs"][0], expected, rtol=1e-3, atol=1e-3)
    assert idata.log_likelihood["obs"].dtype == np.float64  # LOO takes exponents of sums


def test_a_mini_batch_is_not_scaled_either():
    svi, x, y = fit(steps=3)
    idata = from_pyro_svi(svi, model_args=(x[:6], y[:6]), num_samples=25)
    mean, precision = (torch.tensor(idata.posterior[name].values[0]) for name in ("mean", "precision"))
    expected = torch.distributions.Normal(mean, precision.rsqrt().unsqueeze(-1)).log_prob(y[:6])
    np.testing.assert_allclose(idata.log_likelihood["obs"][0], expected, rtol=1e-3, atol=1e-3)


def test_rates_are_the_guides_and_weights_come_on_request():
    svi, x, y = fit(AutoBernoulliDropout, rate={"net.0.weight": 0.25, "net.2.weight": 0.5}, steps=3)
    idata = from_pyro_svi(svi, model_args=(x, y), num_samples=50, weights=True)
    assert np.unique(idata.posterior["net.0.weight.rate"]).tolist() == [0.25]
    weight, mask = (idata.posterior[name].values[0] for name in ("net.0.weight", "net.0.weight.mask"))
    assert weight.shape == (50, 8, 3)
    loc = svi.guide.median()["net.0.weight"].detach().numpy()
    np.testing.assert_allclose(weight, loc * mask[:, None, :] / 0.75, rtol=1e-5)
    assert set(np.unique(mask)) == {0.0, 1.0}


@pytest.mark.filterwarnings("ignore:For one or more samples the posterior variance")
def test_loo_and_summary_run():
    svi, x, y = fit()
    idata = from_pyro_svi(svi, model_args=(x, y), num_samples=500)
    lpd = predictive_log_likelihood(torch.tensor(idata.log_likelihood["obs"].values[0])).sum().item()
    assert elpd(az.loo(idata)) < lpd  # leaving a point out costs
    if BEFORE_1:  # 1.x has no other
        assert az.waic(idata).elpd_waic < lpd
    assert az.summary(idata, var_names=["precision"], kind="stats").shape[0] == 1


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_the_same_call_gives_a_data_tree_on_arviz_1(monkeypatch):
    svi, x, y = fit(steps=30)
    monkeypatch.setitem(__import__("sys").modules, "arviz", arviz_base)
    tree = from_pyro_svi(svi, model_args=(x, y), num_samples=60, prior=True)
    assert type(tree).__name__ == "DataTree"
    assert set(tree.children) >= {"posterior", "posterior_predictive", "log_likelihood", "observed_data", "prior"}
    assert tree["log_likelihood"]["obs"].dims == ("chain", "draw", "data")
    assert tree["posterior"]["precision"].shape == (1, 60)
    assert np.isfinite(arviz_stats.loo(tree).elpd)


def test_guide_lists_local_latents_and_several_observed_sites():
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y=None, z=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            pyro.sample("count", dist.Poisson(shift.exp()), obs=z)
            pair = torch.stack([mean, -mean], -1)
            pyro.sample("pair", dist.Normal(pair, 1.0).to_event(1), obs=y)
            pyro.deterministic("size", pair.norm(dim=-1))

    guide = AutoGuideList(model)
    guide.append(AutoConcreteDropout(pyro.poutine.block(model, hide=["shift", "bias"])))
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["shift", "bias"])))
    x, y, z = torch.randn(7, 3), torch.randn(7, 2), torch.ones(7)
    svi = SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO())
    svi.step(x, y, z)
    for parallel in (True, False):
        idata = from_pyro_svi(svi, model_args=(x, y), model_kwargs={"z": z}, num_samples=11, parallel=parallel)
        assert idata.posterior["shift"].dims == ("chain", "draw", "data")
        assert idata.posterior["size"].shape == (1, 11, 7)
        assert idata.posterior["weight.rate"].shape == (1, 11)
        assert idata.posterior_predictive["pair"].shape == (1, 11, 7, 2)
        assert idata.log_likelihood["pair"].shape == (1, 11, 7)  # per datum
        assert idata.log_likelihood["count"].shape == (1, 11, 7)


def test_weights_of_a_hand_written_network_are_weights_under_any_guide():
    """A matrix of two event dimensions is one, as for a dropout guide; prediction hides the same sites."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        mean = (x * w.squeeze(-2)).sum(-1) + shift
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    x, y = torch.randn(7, 3), torch.randn(7)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO())
    svi.step(x, y)
    predict = DropoutPredictive(model, guide=guide, num_samples=5)
    assert set(predict(x)) == {"shift", "obs"}
    for parallel in (True, False):
        options = {"model_args": (x, y), "num_samples": 5, "prior": True, "parallel": parallel}
        without, with_weights = (from_pyro_svi(svi, weights=weights, **options) for weights in (False, True))
        for group in ("posterior", "prior"):
            assert set(without[group].data_vars) == {"shift"}
            assert set(with_weights[group].data_vars) == {"shift", "w"}
            assert with_weights[group]["w"].shape == (1, 5, 1, 3)


def test_constant_data_and_coordinates_can_be_given():
    svi, x, y = fit(steps=1)
    names = [f"patient {i}" for i in range(30)]
    idata = from_pyro_svi(
        svi,
        model_args=(x, y),
        num_samples=5,
        constant_data={"age": x[:, 0]},
        coords={"data": names},
        dims={"age": ["data"]},
    )
    assert idata.constant_data["age"].dims == ("data",)
    assert idata.observed_data["data"].values.tolist() == names


@pytest.mark.parametrize("parallel", [True, False])
def test_a_plate_that_subsamples_by_itself_keeps_one_subsample(parallel):
    net = BayesianModule(nn.Linear(1, 1))

    def model(x, y):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("obs", dist.Normal(0.001 * mean[..., index] + 10.0 * index, 0.01), obs=y[index])

    x, y = torch.zeros(20, 1), 10.0 * torch.arange(20)
    svi = SVI(model, AutoBernoulliDropout(model), pyro.optim.Adam({}), TraceDropout_ELBO(masks="draw"))
    svi.step(x, y)
    idata = from_pyro_svi(svi, model_args=(x, y), num_samples=5, parallel=parallel)
    replicated = idata.posterior_predictive["obs"].values
    np.testing.assert_allclose(replicated, np.broadcast_to(idata.observed_data["obs"], replicated.shape), atol=0.2)


def test_wrong_numbers_of_draws():
    svi, x, y = fit(steps=1)
    with pytest.raises(ValueError, match="num_samples must be a positive integer, but found 0"):
        from_pyro_svi(svi, model_args=(x, y), num_samples=0)


def test_a_model_that_observes_nothing_raises():
    svi, x, _ = fit(steps=1)
    with pytest.raises(ValueError, match="observes nothing with these arguments: pass the data in model_args"):
        from_pyro_svi(svi, model_args=(x,), num_samples=5)


def test_draws_that_are_not_finite_raise():
    svi, x, y = fit(steps=1)
    with torch.no_grad():
        svi.guide.rest.precision = torch.tensor(0.0)
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"draws of 'obs' in group .* are not finite"):
        from_pyro_svi(svi, model_args=(x, y), num_samples=5)
