"""The checks say what they should of posteriors that are known."""

import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal

from examples.common.arviz_versions import BEFORE_1, from_arrays, leave_one_out
from examples.common.standardised import Data
from examples.start.checks import (
    approximate_loo,
    compare,
    export,
    log_density,
    r_hat,
    rates_as_draws,
)
from examples.start.posterior_fits import Fit, as_guide
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout

# how ArviZ 0.23 calls pandas 3
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning")


@pytest.fixture
def conjugate():
    """Normal data with unknown mean: a model, its data, its posterior and the exact leave-one-out log-likelihood."""
    n, y = 20, torch.randn(20) + 0.5

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(w, 1.0), obs=y)

    exact = dist.Normal((y.sum() - y) / n, math.sqrt(1 + 1 / n)).log_prob(y).mean().item()
    data = Data(torch.zeros(n, 1), y, torch.zeros(n, 1), y, 0.0, 1.0)
    return model, data, dist.Normal(y.sum() / (n + 1), (n + 1) ** -0.5), exact


def weigh(conjugate, shift, factor):
    """Leave-one-out with both kinds of weights, from a normal q beside the posterior; against the exact one."""
    model, data, posterior, exact = conjugate
    q = dist.Normal(posterior.mean + shift, factor * posterior.stddev)
    table = approximate_loo(Fit(model, lambda x, y=None: pyro.sample("w", q), 4000), data)
    assert all(row["k > 0.7"] == 0 for row in table.values())  # says nothing of q here
    return [row["elpd_loo"] - exact for row in table.values()]


def test_leave_one_out_is_right_where_q_is_the_posterior(conjugate):
    assert weigh(conjugate, 0.0, 1.0) == pytest.approx([0, 0], abs=0.005)


@pytest.mark.parametrize(("shift", "factor", "sign"), [(0.0, 1.5, -1), (0.0, 0.7, 1), (0.3, 1.0, -1)])
def test_it_takes_a_wide_q_for_worse_and_a_narrow_one_for_better_than_the_posterior(conjugate, shift, factor, sign):
    plain, corrected = weigh(conjugate, shift, factor)
    assert sign * plain > 0.01
    assert corrected == pytest.approx(0, abs=0.005)  # log p - log q knows


def test_densities_of_transformed_latents_have_their_jacobian():
    def model():
        pyro.sample("tau", dist.Gamma(2.0, 3.0))

    guide = AutoNormal(model, init_scale=0.3)
    guide()
    with torch.no_grad(), pyro.plate("draws", 7, dim=-1):
        drawn = pyro.poutine.trace(guide).get_trace()
        joint = pyro.poutine.trace(pyro.poutine.replay(model, drawn)).get_trace()
    tau = drawn.nodes["tau"]["value"]
    q = dist.LogNormal(guide.locs.tau.detach(), guide.scales.tau.detach())
    torch.testing.assert_close(log_density(drawn, 7), q.log_prob(tau))
    torch.testing.assert_close(log_density(joint, 7), dist.Gamma(2.0, 3.0).log_prob(tau))


def test_what_cannot_be_imported_is_said(conjugate, monkeypatch, capsys):
    model, data, *_ = conjugate
    monkeypatch.setitem(sys.modules, "arviz_stats", None)
    assert approximate_loo(Fit(model, None, 10), data) == {}
    assert "needs arviz_stats (pip install 'arviz-stats[xarray]')" in capsys.readouterr().out


@pytest.fixture
def runs():
    """Two fits that differ, of the same data."""
    pyro.settings.set(module_local_params=True)
    x, y = torch.randn(12, 3), torch.randn(12)
    models = [Regression(features=3, size=12, hidden=(8,)) for _ in range(2)]
    return [Fit(model, AutoBernoulliDropout(model, rate=0.2), 500) for model in models], Data(x, y, x, y, 10.0, 2.0)


def test_r_hat_of_predictions_says_whether_runs_agree(runs):
    fits, data = runs
    same = r_hat(export([fits[0], fits[0]], data.x, data.y, data), "mean")
    other = r_hat(export(fits, data.x, data.y, data), "mean")
    assert 0.99 < same["median"] < same["largest"] < 1.05
    assert other["median"] > 1.2
    assert other["largest"] > 1.5


def test_r_hat_of_rates_says_whether_they_have_settled_and_where():
    def records(*levels, drift=0.0):
        steps = list(range(100))
        start = [0.5] * 50  # the first half does not count
        noise = 0.001 * torch.randn(len(levels), 50)
        rates = [start + [level + drift * i + noise[k, i].item() for i in range(50)] for k, level in enumerate(levels)]
        return r_hat(rates_as_draws([Fit(None, None, 1, steps, {"w": rate}) for rate in rates]), "w")["largest"]

    assert records(0.1, 0.1, 0.1) < 1.1
    assert records(0.1, 0.1, 0.12) > 1.5
    assert records(0.1, 0.1, 0.1, drift=0.001) > 1.5


def test_export_is_in_units_of_the_target(runs):
    (fit, _), data = runs
    idata = export([fit], data.x, data.y, data)
    torch.testing.assert_close(torch.tensor(idata["observed_data"]["obs"].values), 2 * data.y + 10)
    noise = 2 * torch.tensor(idata["posterior"]["precision"].values).rsqrt().unsqueeze(-1)
    density = dist.Normal(torch.tensor(idata["posterior"]["mean"].values), noise).log_prob(2 * data.y + 10)
    torch.testing.assert_close(
        torch.tensor(idata["log_likelihood"]["obs"].values).float(), density, rtol=1e-4, atol=1e-4
    )


def test_draws_as_a_guide_are_what_predictive_makes_of_them(runs):
    (fit, _), data = runs
    shapes = {"net.0.weight": (8, 3), "net.0.bias": (8,), "net.2.weight": (1, 8), "net.2.bias": (1,), "precision": ()}
    samples = {name: torch.rand(6, *shape) for name, shape in shapes.items()}
    expected = Predictive(fit.model, samples, parallel=True)(data.x)["mean"].reshape(6, 12)
    found = export([Fit(fit.model, as_guide(samples), 6)], data.x, data.y, data)["posterior"]["mean"].values[0]
    torch.testing.assert_close(torch.tensor(found), 2 * expected + 10)


def test_a_guide_without_a_leave_one_out_estimate_is_named(capsys):
    rng = np.random.default_rng(0)
    groups = from_arrays(
        {"posterior": {"a": rng.normal(size=(1, 200))}, "log_likelihood": {"obs": rng.normal(size=(1, 200, 9))}}
    )
    loos = {name: leave_one_out(groups) for name in ("one", "two", "three")}
    setattr(loos["two"], "elpd_loo" if BEFORE_1 else "elpd", math.nan)
    assert set(compare(loos).index) == {"one", "three"}
    assert capsys.readouterr().out == "two is not in the comparison: its leave-one-out estimate is not finite\n"
