"""NormalInverseGamma against torch's own densities, as a prior under NUTS, and updated in parts."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch.distributions import InverseGamma, MultivariateNormal

from pyro_dropout.entropic import EntropicLinearRegression, NormalInverseGamma
from pyro_dropout.entropic._design import Design
from pyro_dropout.entropic._rows import DiagonalPlusRows
from tests.support.scenarios import assert_same_mean

F64 = torch.float64


def some(p=3):
    root = torch.randn(p, p + 2, dtype=F64)
    return torch.randn(p, dtype=F64), root @ root.T, 4.0, 2.5


def test_density_is_the_product_of_torchs_own():
    loc, precision, a, b = some()
    ours = NormalInverseGamma(loc, precision, a, b)
    value = ours.sample((5, 2))
    w, variance = ours.split(value)
    assert value.shape == (5, 2, 4)
    normal = MultivariateNormal(loc, precision_matrix=precision / variance[..., None, None])
    expected = normal.log_prob(w) + InverseGamma(torch.tensor(a, dtype=F64), b).log_prob(variance)
    torch.testing.assert_close(ours.log_prob(value), expected)


def test_draws_moments_and_marginals():
    ours = NormalInverseGamma(*some())
    draws = ours.sample((50_000,))
    assert_same_mean(draws, ours.mean)
    assert_same_mean((draws - ours.mean).square(), ours.variance)
    assert torch.allclose(ours.marginal().variance, ours.variance[:-1])
    assert torch.allclose(ours.marginal(1).scale, ours.marginal().scale[1:2])
    assert torch.allclose(ours.noise.mean, ours.mean[-1])
    below = (draws[:, :-1] < ours.loc + ours.marginal().scale).double()
    assert_same_mean(below, torch.as_tensor(_student_cdf(1.0, 8.0)))


def _student_cdf(x, df):
    from scipy.stats import t

    return t.cdf(x, df)


@pytest.mark.parametrize("structured", [False, True])
def test_structured_and_dense_precision_agree_and_differentiate(structured):
    p, rows = 6, torch.randn(4, 6, dtype=F64)
    diagonal, scale = torch.rand(p, dtype=F64) + 0.5, torch.rand(p, dtype=F64)
    dense = torch.diag(diagonal) + (rows * scale).T @ (rows * scale)
    precision = DiagonalPlusRows(diagonal, Design(rows), scale) if structured else dense
    ours = NormalInverseGamma(torch.zeros(p, dtype=F64), precision, 3.0, 1.0)
    value = torch.rand(2, p + 1, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(ours.log_prob, value)
    w, variance = ours.split(value)
    normal = MultivariateNormal(torch.zeros(p, dtype=F64), precision_matrix=dense / variance[..., None, None])
    expected = normal.log_prob(w) + InverseGamma(torch.tensor(3.0, dtype=F64), 1.0).log_prob(variance)
    torch.testing.assert_close(ours.log_prob(value), expected)
    assert_same_mean(ours.sample((20_000,))[:, :-1].square(), ours.variance[:-1])


def test_sparse_rows_differentiate():
    import scipy.sparse

    rows = scipy.sparse.random_array((4, 9), density=0.4, rng=np.random.default_rng(0))
    design = Design(rows, torch.rand(9, dtype=F64))
    precision = DiagonalPlusRows(torch.ones(9, dtype=F64), design, torch.ones(9, dtype=F64))
    ours = NormalInverseGamma(torch.zeros(9, dtype=F64), precision, 3.0, 1.0)
    assert torch.autograd.gradcheck(ours.log_prob, torch.rand(10, dtype=F64, requires_grad=True))


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_updating_in_parts_is_updating_by_all(rate):
    x, y = torch.randn(30, 3, dtype=F64), torch.randn(30, dtype=F64)
    prior = NormalInverseGamma(*some())
    whole = prior.update(x, y, rate)
    parts = prior
    for part in torch.arange(30).split(7):
        parts = parts.update(x[part], y[part], rate)
    assert torch.allclose(parts.loc, whole.loc)
    assert torch.allclose(parts.precision.matrix, whole.precision.matrix)
    assert (parts.concentration, parts.noise_rate) == pytest.approx((whole.concentration, whole.noise_rate))


def test_update_is_the_estimator():
    x, y = torch.randn(12, 4, dtype=F64), torch.randn(12, dtype=F64)
    rate = torch.tensor([0.1, 0.2, 0.0, 0.7])
    posterior = NormalInverseGamma(torch.zeros(4, dtype=F64), 0.5 * torch.eye(4), 2.0, 1.0).update(x, y, rate)
    model = EntropicLinearRegression(rate.numpy(), 0.5, 2.0, 1.0, fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(model.posterior_.loc, posterior.loc)
    assert model.noise_rate_ == pytest.approx(posterior.noise_rate)


def test_posterior_is_a_prior_of_the_next_pyro_model():
    """Half of the data in closed form, the other half by NUTS: all of them in closed form."""
    x, y = torch.randn(20, 2, dtype=F64), torch.randn(20, dtype=F64)
    start = NormalInverseGamma(torch.zeros(2, dtype=F64), torch.eye(2), 3.0, 2.0)
    half, whole = start.update(x[:10], y[:10]), start.update(x, y)

    def model():
        w, variance = half.split(pyro.sample("theta", half))
        with pyro.plate("data", 10):
            pyro.sample("y", dist.Normal(x[10:] @ w, variance.sqrt()), obs=y[10:])

    mcmc = MCMC(NUTS(model), num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["theta"]
    size = torch.tensor([float(s["n_eff"].min()) for s in [mcmc.diagnostics()["theta"]]])
    error = (draws.mean(0) - whole.mean).abs() / (whole.variance / size).sqrt()
    assert error.max() < 4


def test_inside_a_plate():
    prior = NormalInverseGamma(*some())
    with pyro.plate("groups", 5):
        value = pyro.sample("theta", prior)
    assert value.shape == (5, 4)
    assert prior.expand([5]).log_prob(value).shape == (5,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), torch.eye(3), 1.0, 1.0), r"loc must be \[p\] and precision \[p, p\]"),
        ((torch.zeros(2), -torch.eye(2), 1.0, 1.0), "not positive definite"),
        ((torch.zeros(2), torch.eye(2), 0.0, 1.0), "concentration must be positive, but found 0.0"),
        ((torch.zeros(2), torch.eye(2), 1.0, math.nan), "noise_rate must be positive, but found nan"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NormalInverseGamma(*arguments)


def test_wrong_updates():
    prior = NormalInverseGamma(torch.zeros(2), torch.eye(2), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"x must be \[n, 2\] and y \[n\], but found \(5, 3\) and \(5,\)"):
        prior.update(torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(ValueError, match=r"lies in \[0, 1\)"):
        prior.update(torch.zeros(5, 2), torch.zeros(5), rate=1.0)
