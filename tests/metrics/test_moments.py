"""Moments and log-likelihood of predictions against hand-computed cases and scipy."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta
from scipy import stats

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive
from pyro_dropout.metrics import PredictiveMoments, merge, predictive_log_likelihood, predictive_moments


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


DRAWS = ([7], [3, 4], [1, 2, 4])


@pytest.mark.parametrize("draws", DRAWS)
def test_merged_moments_are_those_of_all_draws(draws):
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(7, 5)), rng.gamma(2.0, size=(7, 5))
    parts = [
        predictive_moments(torch.tensor(m), torch.tensor(v))
        for m, v in zip(np.split(mean, np.cumsum(draws)[:-1]), np.split(variance, np.cumsum(draws)[:-1]), strict=True)
    ]
    merged = merge(parts, draws)
    np.testing.assert_allclose(merged.mean, mean.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.epistemic, mean.var(0), rtol=1e-12)
    np.testing.assert_allclose(merged.aleatoric, variance.mean(0), rtol=1e-12)


@pytest.mark.parametrize("draws", DRAWS)
def test_merged_log_densities_are_those_of_all_draws(draws):
    densities = stats.norm.logpdf(np.random.default_rng(0).normal(size=(7, 5)))
    parts = [predictive_log_likelihood(torch.tensor(part)) for part in np.split(densities, np.cumsum(draws)[:-1])]
    np.testing.assert_allclose(merge(parts, draws), np.log(np.exp(densities).mean(0)), rtol=1e-12)
    far = merge([part - 1e6 for part in parts], draws)
    np.testing.assert_allclose(far, np.log(np.exp(densities).mean(0)) - 1e6, rtol=1e-12)
    impossible = merge([torch.tensor([-math.inf, 0.0]), torch.tensor([-math.inf, -math.inf])], [1, 3])
    assert impossible.tolist() == [-math.inf, pytest.approx(math.log(1 / 4))]


def test_what_parts_of_kept_draws_predict_merges():
    model = Regression(3, 20, (4,), precision="network")
    guide, x = AutoBernoulliDropout(model, rate=0.3, rest=AutoDelta), torch.randn(20, 3)
    guide(x, x[:, 0])
    functions = DropoutPredictive(model, guide=guide, num_samples=9, return_sites=["obs"], seed=0).draw(x)
    parts, draws = [functions[:2], functions[2:]], [2, 7]
    merged = merge([part.moments(x)["obs"] for part in parts], draws)
    torch.testing.assert_close(tuple(merged), tuple(functions.moments(x)["obs"]))
    densities = merge([part.log_likelihood(x, x[:, 0])["obs"] for part in parts], draws)
    torch.testing.assert_close(densities, functions.log_likelihood(x, x[:, 0])["obs"])


def test_merging_is_stable_where_deviations_are_small():
    """In single precision, far from 0: the difference of mean squares would be wrong by about 1."""
    draws = 4096 + torch.randn(60, 20, dtype=torch.float64) / 100
    parts = [predictive_moments(part.float()) for part in draws.split(20)]
    merged = merge(parts, [20, 20, 20])
    exact = draws.float().double().var(0, correction=0)
    torch.testing.assert_close(merged.epistemic.double(), exact, rtol=0.05, atol=0.0)
    equal = PredictiveMoments(torch.tensor([4095.7]), torch.tensor([1e-9]), torch.tensor([0.3]))
    assert merge([equal] * 3, [1, 5, 7]) == equal


def test_labelled_moments_merge_by_their_labels():
    values = xr.DataArray(
        np.random.default_rng(0).normal(size=(2, 6, 3)), dims=("chain", "draw", "row"), coords={"row": ["a", "b", "c"]}
    )
    parts = [predictive_moments(values[:, :4]), predictive_moments(values[:, 4:, ::-1])]
    merged = merge(parts, [8, 4])
    assert merged.mean.dims == ("row",)
    xr.testing.assert_allclose(merged.mean, values.mean(("chain", "draw")))
    xr.testing.assert_allclose(merged.epistemic, values.var(("chain", "draw")))
    densities = merge([predictive_log_likelihood(values[:, :4]), predictive_log_likelihood(values[:, 4:])], [8, 4])
    xr.testing.assert_allclose(densities, np.log(np.exp(values).mean(("chain", "draw"))))
