"""Data in chunks: the caller's arrays stay the caller's, and a posterior is that of the values it was given."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch

from pyro_dropout.entropic import EntropicLinearRegression, NormalInverseGamma, entropic_dropout
from tests.support.scenarios import linear_data as data

pytestmark = pytest.mark.filterwarnings("ignore:\\s*ArviZ is undergoing a major refactor:FutureWarning")


def closed_form(x, y, rate=0.1, shrinkage=1.0, intercept=True):
    """Coefficients of the fitted mean, by the p × p system."""
    keep, xc, yc = 1 - rate, x - x.mean(0) * intercept, y - y.mean() * intercept
    gram = xc.T @ xc
    precision = np.diag(shrinkage + rate * keep * gram.diagonal()) + keep**2 * gram
    return keep**2 * np.linalg.solve(precision, xc.T @ yc)


def sparse(x):
    """A matrix on the caller's own buffers, whose values may be overwritten."""
    return sp.csr_array(x)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("p", [8, 50])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, sparse], ids=["array", "tensor", "sparse"])
def test_a_reused_buffer_does_not_change_what_was_read(convert, p, intercept):
    x, y = data(20, p)
    model = EntropicLinearRegression(fit_intercept=intercept)
    buffer, response = convert(np.ones((5, p))), np.empty(5)
    for part in np.split(np.arange(20), 4):
        values = buffer.data if convert is sparse else buffer
        values[:] = convert(x[part]).data if convert is sparse else convert(x[part])
        response[:] = y[part]
        model.partial_fit(buffer, response)
    np.testing.assert_allclose(model.coef_, closed_form(x, y, intercept=intercept), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_nothing_that_is_asked_after_a_fit_reads_the_callers_arrays(dtype, order):
    """Deviations, draws and densities as well as coefficients; ``fit`` without intercept takes no mean off."""
    x, y = data(6, 20)
    x = np.array(x, dtype=dtype, order=order)
    rate = np.full(20, 0.3)
    model = EntropicLinearRegression(rate, fit_intercept=False).fit(x, y)
    untouched = EntropicLinearRegression(rate.copy(), fit_intercept=False).fit(x.copy(order="K"), y.copy())
    new = data(3, 20, seed=1)[0]
    x[:], y[:], rate[:] = 7.0, 7.0, 0.9
    for name in ("coef_", "noise_rate_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(untouched, name))
    for dropout in (False, True):
        np.testing.assert_array_equal(
            model.predict(new, return_std=True, dropout=dropout),
            untouched.predict(new, return_std=True, dropout=dropout),
        )
    np.testing.assert_array_equal(model.sample(3, 0).coef, untouched.sample(3, 0).coef)
    assert model.log_normalizer() == untouched.log_normalizer()


def test_exports_and_distributions_keep_copies():
    x, y = data(12, 3)
    model = EntropicLinearRegression().fit(x, y)
    exported = model.to_arviz(x, y, n_draws=3)["observed_data"]["y"]
    posterior = model.posterior_
    posterior.loc[:] = 5.0  # what is handed out is the user's
    y_before = y.copy()
    y[:] = 7.0
    np.testing.assert_array_equal(exported, y_before)
    np.testing.assert_allclose(model.predict(x) - model.intercept_, x @ model.coef_)
    loc, precision = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    prior = NormalInverseGamma(loc, precision, 2.0, 1.0)
    before = prior.log_prob(torch.ones(3, dtype=torch.float64))
    loc[:], precision[:] = 3.0, 9.0
    assert prior.log_prob(torch.ones(3, dtype=torch.float64)) == before
    updated = prior.update(np.eye(2), np.ones(2))
    np.testing.assert_allclose(updated.loc, [0.5, 0.5])


def test_the_handler_keeps_the_rates_it_was_given():
    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 1):
            pyro.sample("y", dist.Normal(w.sum(-1, keepdim=True), 1.0), obs=torch.ones(1))

    rate = torch.tensor([0.2, 0.5])
    values = {"w": torch.tensor([1.0, -2.0])}
    expected = entropic_dropout(model, rate={"w": rate.clone()})
    found = entropic_dropout(model, rate={"w": rate})
    rate[:] = 0.9
    density = [
        pyro.poutine.trace(pyro.poutine.condition(m, values)).get_trace().log_prob_sum() for m in (found, expected)
    ]
    assert density[0] == density[1]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("p", [8, 50])
@pytest.mark.parametrize("kinds", ["dsds", "sdsd", "ddds", "sssd"])
def test_dense_and_sparse_chunks_may_be_mixed(kinds, p, intercept):
    x, y = data(20, p)
    model = EntropicLinearRegression(fit_intercept=intercept)
    for kind, part in zip(kinds, np.split(np.arange(20), 4), strict=True):
        model.partial_fit(sparse(x[part]) if kind == "s" else x[part], y[part])
    np.testing.assert_allclose(model.coef_, closed_form(x, y, intercept=intercept), atol=1e-9)
    whole = EntropicLinearRegression(fit_intercept=intercept).fit(x, y)
    np.testing.assert_allclose(model.predict(x, return_std=True), whole.predict(x, return_std=True), rtol=1e-8)
