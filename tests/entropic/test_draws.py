"""Draws are of the posterior: their moments, with one output and several, with weights."""

import numpy as np
import pytest

from pyro_dropout.entropic import EntropicLinearRegression, PosteriorDraws
from tests.support.scenarios import linear_data as data


@pytest.mark.parametrize(("n", "p"), [(30, 4), (6, 20)])
def test_draws_have_the_moments_of_the_posterior(n, p):
    x, y = data(n, p)
    model = EntropicLinearRegression(0.3, a0=4.0, b0=2.0).fit(x, y)
    draws = model.sample(40_000, random_state=1)
    posterior = model.posterior_
    mean, variance = posterior.mean.numpy(), posterior.variance.numpy()
    for drawn, m, v in ((draws.coef / 0.7, mean[:-1], variance[:-1]), (draws.noise_variance, mean[-1], variance[-1])):
        assert (abs(drawn.mean(0) - m) < 5 * np.sqrt(v / 40_000)).all()
        error = ((drawn - m) ** 2).std(0) / 200
        assert (abs(((drawn - m) ** 2).mean(0) - v) < 5 * error).all()
    new = data(3, p, seed=2)[0]
    lines = draws.intercept + new @ draws.coef.T
    noise = np.sqrt(draws.noise_variance) * np.random.default_rng(0).normal(size=40_000)
    predicted, deviation = model.predict(new, return_std=True)
    np.testing.assert_allclose((lines + noise).mean(1), predicted, atol=5 * deviation.max() / 200)
    np.testing.assert_allclose((lines + noise).std(1), deviation, rtol=0.05)
    masks = np.random.default_rng(1).random((40_000, p)) > 0.3
    center = x.mean(0)
    with_dropout = (new[:, None] - center) * draws.coef / 0.7 * masks
    lines = draws.intercept + draws.coef @ center + with_dropout.sum(-1)
    predicted, deviation = model.predict(new, return_std=True, dropout=True)
    np.testing.assert_allclose((lines + noise).mean(1), predicted, atol=5 * deviation.max() / 200)
    np.testing.assert_allclose((lines + noise).std(1), deviation, rtol=0.05)
    assert np.array_equal(model.sample(3, random_state=5).coef, model.sample(3, random_state=5).coef)


@pytest.mark.parametrize(("n", "p"), [(30, 4), (6, 20)])
def test_draws_of_outputs_are_of_their_own_posteriors_and_independent(n, p):
    x, y = data(n, p)
    y = np.column_stack([y, -3.0 * y + x[:, 0]])
    v = np.random.default_rng(0).gamma(2.0, 2.0, size=n)
    model = EntropicLinearRegression(0.3, a0=4.0, b0=2.0).fit(x, y, sample_weight=v)
    draws = model.sample(40_000, random_state=1)
    assert isinstance(draws, PosteriorDraws)
    assert [v.shape for v in draws] == [(40_000, 2, p), (40_000, 2), (40_000, 2)]
    for k, posterior in enumerate(model.posterior_):
        mean, variance = posterior.mean.numpy(), posterior.variance.numpy()
        drawn = np.column_stack([draws.coef[:, k] / 0.7, draws.noise_variance[:, k]])
        assert (abs(drawn.mean(0) - mean) < 5 * np.sqrt(variance / 40_000)).all()
        error = ((drawn - mean) ** 2).std(0) / 200
        assert (abs(((drawn - mean) ** 2).mean(0) - variance) < 5 * error).all()
        at_the_mean = draws.intercept[:, k] + draws.coef[:, k] @ (v @ x / v.sum())
        expected = model.noise_rate_[k] / (model.concentration_ - 1) / v.sum()
        assert abs(at_the_mean.mean() - v @ y[:, k] / v.sum()) < 5 * expected**0.5 / 200
        assert at_the_mean.var() == pytest.approx(expected, rel=0.05)
    correlation = np.corrcoef(draws.coef.reshape(40_000, -1).T)[:p, p:]
    assert abs(correlation).max() < 5 / 200
    assert abs(np.corrcoef(draws.noise_variance.T)[0, 1]) < 5 / 200
