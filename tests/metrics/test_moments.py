"""Moments and log-likelihood of predictions against hand-computed cases and scipy."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from pyro_dropout.metrics import predictive_log_likelihood, predictive_moments


def test_moments_of_draws_with_noise_are_those_of_the_mixture():
    """Against the sample moments of y itself: variance of the means plus the mean of the variances."""
    rng = np.random.default_rng(0)
    mean = torch.tensor(rng.normal(size=(200, 3)))
    variance = torch.tensor(rng.gamma(2.0, size=(200, 3)))
    moments = predictive_moments(mean, variance)
    n = 4000
    y = mean.numpy()[None] + np.sqrt(variance.numpy())[None] * rng.normal(size=(n, 200, 3))
    np.testing.assert_allclose(moments.mean, y.reshape(-1, 3).mean(0), atol=0.01)
    np.testing.assert_allclose(moments.variance, y.reshape(-1, 3).var(0), rtol=0.01)
    np.testing.assert_allclose(moments.aleatoric, variance.numpy().mean(0))
    np.testing.assert_allclose(moments.epistemic, mean.numpy().var(0))
    wrong = variance.log().mean(0).exp()  # PITFALLS 8
    assert bool((moments.aleatoric > 1.2 * wrong).all())


def test_a_precision_per_draw_broadcasts():
    moments = predictive_moments(torch.zeros(4, 5), 1 / torch.tensor([[1.0], [2.0], [4.0], [4.0]]))
    assert moments.aleatoric.tolist() == [0.5] * 5
    assert predictive_moments(torch.zeros(4, 5)).variance.tolist() == [0.0] * 5


def test_log_likelihood_is_of_the_mixture_per_point():
    mean, y, tau = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, -3.0]]).double(), torch.tensor([1.0, 0.5]).double(), 2.0
    log_prob = torch.distributions.Normal(mean, tau**-0.5).log_prob(y)
    found = predictive_log_likelihood(log_prob)
    mixture = np.log(stats.norm.pdf(y.numpy(), mean.numpy(), tau**-0.5).mean(0))
    np.testing.assert_allclose(found, mixture)
    paper = (
        torch.logsumexp(-0.5 * tau * (y - mean) ** 2, 0)
        - math.log(3)
        - 0.5 * math.log(2 * math.pi)
        + 0.5 * math.log(tau)
    )
    torch.testing.assert_close(found, paper)  # MC eq. 13
    joint = torch.logsumexp(log_prob.sum(-1), 0) - math.log(3)
    moments = predictive_moments(mean, 1 / tau)
    gaussian = torch.distributions.Normal(moments.mean, moments.variance.sqrt()).log_prob(y)
    assert abs(found.sum() - joint) > 0.01
    assert abs(found.sum() - gaussian.sum()) > 0.01


def test_log_likelihood_is_stable_far_out():
    assert predictive_log_likelihood(torch.tensor([[-1e6], [-1e6]])).item() == pytest.approx(-1e6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predictive_moments(torch.tensor(1.0)), "draws on its first dimension"),
        (lambda: predictive_moments(torch.zeros(2, 3), -1.0), "must not be negative, but found -1"),
        (lambda: predictive_log_likelihood(torch.tensor(1.0)), "draws on its first dimension"),
        (
            lambda: predictive_moments(torch.zeros(3, 3), torch.ones(3)),
            r"2 dimensions of mean.*found shape \(3,\)",
        ),
        (lambda: predictive_moments(torch.tensor([[math.nan]])), "mean has 1 NaN"),
        (lambda: predictive_log_likelihood(torch.tensor([[math.nan]])), "NaN entries"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labelled_draws_give_labelled_results():
    """As ArviZ has them: chains apart, a precision per draw, data with a name and coordinates."""
    rng = np.random.default_rng(0)
    mean = xr.DataArray(rng.normal(size=(5, 2, 4)), dims=("point", "chain", "draw"), coords={"point": list("abcde")})
    precision = xr.DataArray(rng.random((2, 4)) + 1, dims=("chain", "draw"))
    moments = predictive_moments(mean, 1 / precision)
    assert moments.mean.dims == ("point",)
    assert list(moments.epistemic.point) == list("abcde")
    xr.testing.assert_allclose(moments.mean, mean.mean(("chain", "draw")))
    xr.testing.assert_allclose(moments.epistemic, mean.var(("chain", "draw")))
    np.testing.assert_allclose(moments.aleatoric, (1 / precision).mean())
    density = predictive_log_likelihood(mean)
    np.testing.assert_allclose(density, np.log(np.exp(mean).mean(("chain", "draw"))))
    with pytest.raises(ValueError, match="chain, draw or sample, but found point"):
        predictive_log_likelihood(mean.isel(chain=0, draw=0))
