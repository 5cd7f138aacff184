"""The export to ArviZ: whose log-likelihoods leave-one-out may take."""

import sys

import arviz_base
import arviz_stats
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from scipy.special import logsumexp
from sklearn.model_selection import LeaveOneOut

from examples.common.arviz_versions import az, elpd, psis
from pyro_dropout.entropic import EntropicLinearRegression, regression_path
from tests.support.enumeration import all_masks
from tests.support.scenarios import linear_data as data

pytestmark = [
    pytest.mark.filterwarnings("ignore:\\s*ArviZ is undergoing a major refactor:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto"),
]


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("n", [12, 2])
def test_the_constrained_log_likelihood_is_the_mean_over_enumerated_masks(n, intercept, convert):
    x, y = data(n, 3)
    rate = np.array([0.2, 0.0, 0.7])
    model = EntropicLinearRegression(rate, a0=2.0, b0=1.0, fit_intercept=intercept).fit(convert(x), y)
    groups = model.to_arviz(convert(x), y, n_draws=5, random_state=0)
    draws = model.sample(5, np.random.RandomState(0))
    z = all_masks(3).numpy()
    q = np.where(z > 0, 1 - rate, rate).prod(1)
    center = x.mean(0) * intercept
    for s in range(5):
        base = draws.intercept[s] + center @ draws.coef[s]
        w = draws.coef[s] / (1 - rate)
        each = [scipy.stats.norm.logpdf(y, base + (x - center) @ (w * m), draws.noise_variance[s] ** 0.5) for m in z]
        np.testing.assert_allclose(groups["log_likelihood"]["y_constrained"].values[0, s], q @ np.array(each))
        mean = draws.intercept[s] + x @ draws.coef[s]
        expected = scipy.stats.norm.logpdf(y, mean, draws.noise_variance[s] ** 0.5)
        np.testing.assert_allclose(groups["log_likelihood"]["y"].values[0, s], expected)


def leave_one_out(density, weights):
    """Pareto-smoothed importance sampling, of densities by other weights."""
    log_weights, shape = psis(weights.values[0].T)
    return logsumexp(log_weights + density.values[0].T, axis=-1).sum(), shape


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
def test_leave_one_out_is_by_the_weights_of_what_the_posterior_conditioned_on(rate, intercept):
    x, y = data(60, 10)
    ((model,),) = regression_path(x, y, [rate], [1.0], cv=LeaveOneOut(), fit_intercept=intercept)
    exact = model.cv_log_density_.sum()  # of refits
    groups = model.to_arviz(x, y, n_draws=20_000, random_state=0)
    likelihood = groups["log_likelihood"]
    if rate == 0:
        assert list(likelihood.data_vars) == ["y"]
        assert elpd(az.loo(groups)) == pytest.approx(exact, abs=0.15)
        return
    with pytest.raises(TypeError, match="several log likelihood arrays"):
        az.loo(groups)
    found, shape = leave_one_out(likelihood["y"], likelihood["y_constrained"])
    assert shape.max() < 0.7
    assert found == pytest.approx(exact, abs=0.15)
    wrong, _ = leave_one_out(likelihood["y"], likelihood["y"])
    assert abs(wrong - exact) > 2 * abs(found - exact)


@pytest.mark.parametrize("intercept", [True, False])
def test_leave_one_out_of_arviz_1_takes_these_weights(intercept, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", arviz_base)
    x, y = data(60, 10)
    ((model,),) = regression_path(x, y, [0.5], [1.0], cv=LeaveOneOut(), fit_intercept=intercept)
    groups = model.to_arviz(x, y, n_draws=20_000, random_state=0)
    log_weights, k = groups["log_likelihood"]["y_constrained"].azstats.psislw(dim=("chain", "draw"))
    found = arviz_stats.loo(groups, var_name="y", log_weights=log_weights, pareto_k=k)
    assert found.elpd == pytest.approx(model.cv_log_density_.sum(), abs=0.15)


def test_names_of_columns_are_coordinates():
    x, y = data(20, 3)
    table = pd.DataFrame(x, columns=["age", "sex", "bmi"])
    model = EntropicLinearRegression(0.2).fit(table, y)
    exported = model.to_arviz(table, y, n_draws=3)
    assert list(exported["posterior"]["coef"]["feature"].values) == ["age", "sex", "bmi"]
    named = model.to_arviz(n_draws=3, feature_names=["a", "b", "c"])
    assert list(named["posterior"]["coef"]["feature"].values) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature_names must name each of 3 covariates, but found list"):
        model.to_arviz(feature_names=["a", "b"])
    for given in ({"X": table}, {"y": y}):
        with pytest.raises(ValueError, match="X and y, and their weights"):
            model.to_arviz(**given)
