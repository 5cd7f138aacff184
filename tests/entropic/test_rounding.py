"""Where rounding rules: columns that are constant or collinear up to it, targets without noise, little noise."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch

from pyro_dropout.entropic import EntropicLinearRegression, NormalInverseGamma, regression_path
from tests.support.scenarios import linear_data as data

CONVERT = {"dense": np.asarray, "sparse": sp.csr_array, "single": lambda x: x.astype(np.float32)}
VALUES = (0.1, 1 / 3, -1e8 / 3, 1e-9 * np.pi, 0.7, 123456.789)


def fitted(x, y, convert, chunks, **arguments):
    model = EntropicLinearRegression(**arguments)
    for part in np.array_split(np.arange(len(x)), chunks):
        model.partial_fit(CONVERT[convert](x[part]), y[part])
    return model


@pytest.mark.parametrize("convert", CONVERT)
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize(("n", "p"), [(20, 4), (7, 12), (1000, 3)])
def test_constant_columns_that_nothing_shrinks_are_refused_by_name(n, p, chunks, convert):
    for value in VALUES if convert != "sparse" else VALUES[:2]:
        x, y = data(n, p)
        x[:, 1] = value
        for rate in (0.2, 0.9):
            with pytest.raises(ValueError, match=r"columns \[1\].*shrinkage"):
                fitted(x, y, convert, chunks, rate=rate, shrinkage=0.0)
        shrunk = fitted(x, y, convert, chunks, rate=0.2, shrinkage=0.5)
        without = fitted(np.delete(x, 1, axis=1), y, convert, chunks, rate=0.2, shrinkage=0.5)
        np.testing.assert_allclose(shrunk.coef_[1], 0.0, atol=1e-6)
        np.testing.assert_allclose(np.delete(shrunk.coef_, 1), without.coef_, rtol=1e-4, atol=1e-6)
        deviation = shrunk.posterior_.marginal(1).scale * (shrunk.concentration_ / shrunk.noise_rate_) ** 0.5
        assert float(deviation[0]) == pytest.approx(0.5**-0.5, rel=1e-6)  # the prior's


@pytest.mark.parametrize("convert", ["dense", "sparse"])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("intercept", [True, False])
def test_collinear_columns_that_nothing_tells_apart_are_refused(intercept, chunks, convert):
    for seed in range(5):
        x, y = data(40, 5, seed)
        for combination in (x[:, 0], 0.3 * x[:, 0] - 0.7 * x[:, 1], 1e5 * x[:, 0] + x[:, 2] / 3):
            x[:, 4] = combination
            with pytest.raises(ValueError, match="not positive definite"):
                fitted(x, y, convert, chunks, rate=0.0, shrinkage=0.0, fit_intercept=intercept)
            assert np.isfinite(fitted(x, y, convert, chunks, rate=0.1, shrinkage=0.0).coef_).all()


@pytest.mark.parametrize("convert", ["dense", "sparse"])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("p", [3, 60])
def test_columns_that_vary_little_are_not_constant(p, chunks, convert):
    """Against the same columns without their means, of which no digit is lost."""
    spread = 1e-3 if convert == "sparse" else 1e-5  # sums of sparse columns lose (3 / spread)² of their digits
    x, y = data(50, p)
    x -= x.mean(0)
    near = spread * x + 3.0
    exact = near - near.mean(0)
    found = fitted(near, y, convert, chunks, rate=0.3, shrinkage=0.0)
    expected = EntropicLinearRegression(0.3, 0.0).fit(exact, y)
    np.testing.assert_allclose(found.coef_ * spread, expected.coef_ * spread, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("p", [3, 30])
@pytest.mark.parametrize("chunks", [1, 3])
def test_targets_without_noise_are_refused_up_to_rounding(p, chunks):
    x, _ = data(20, p)
    for value in (*VALUES, 0.0):
        with pytest.raises(ValueError, match="fitted without error"):
            fitted(x, np.full(20, value), "dense", chunks)
    if p < 20:
        with pytest.raises(ValueError, match="fitted without error"):
            fitted(x, x @ np.arange(1.0, p + 1) + 0.1, "dense", chunks, rate=0.0, shrinkage=0.0)
    given = fitted(x, np.full(20, 0.1), "dense", chunks, b0=1e-12)
    assert given.noise_rate_ == pytest.approx(1e-12)


def test_a_prior_s_precision_that_is_singular_up_to_rounding():
    root = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(ValueError, match="not positive definite"):
        NormalInverseGamma(torch.zeros(5), torch.as_tensor(root @ root.T), 2.0, 1.0)


# Little noise


def by_least_squares(x, y, rate, shrinkage, intercept):
    """μ and 2 b from an orthogonal factor of the rows and the prior's, which subtracts no large sums."""
    keep = 1 - rate
    xc, yc = x - x.mean(0) * intercept, y - y.mean() * intercept
    weights = np.sqrt(shrinkage + rate * keep * (xc**2).sum(0))
    rows, targets = np.vstack([keep * xc, np.diag(weights)]), np.r_[yc, np.zeros(x.shape[1])]
    mean = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return mean, ((targets - rows @ mean) ** 2).sum()


def little_noise(n, p, noise, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + 5 * rng.normal(size=(n, 1))  # correlated, so that errors grow
    return x, x @ rng.normal(size=p) + noise * rng.normal(size=n)


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("convert", ["dense", "sparse"])
@pytest.mark.parametrize(("n", "p"), [(200, 20), (40, 40), (30, 60)])
def test_little_noise_is_not_lost_in_sums(n, p, convert, intercept, noise):
    x, y = little_noise(n, p, noise)
    shrinkage = 1e-3 * noise**2
    mean, squares = by_least_squares(x, y, 0.0, shrinkage, intercept)
    model = EntropicLinearRegression(0.0, shrinkage, fit_intercept=intercept)
    if n <= p:  # a wide prior
        mean, squares = by_least_squares(x, y, 0.0, 1e-3, intercept)
        model.set_params(shrinkage=1e-3)
    model.fit(CONVERT[convert](x), y)
    assert model.noise_rate_ == pytest.approx(squares / 2, rel=1e-5)
    np.testing.assert_allclose(model.posterior_.loc, mean, rtol=1e-6, atol=1e-9)
    (on_path,), (again,) = regression_path(
        CONVERT[convert](x), y, [0.0, 0.0], [model.shrinkage], fit_intercept=intercept
    )
    assert (on_path.noise_rate_, again.noise_rate_) == pytest.approx((model.noise_rate_,) * 2, rel=1e-8)


def test_held_out_rows_of_little_noise():
    x, y = little_noise(200, 20, 1e-6)
    ((model,),) = regression_path(x, y, [0.0], [1e-15], cv=4)
    expected = []
    for fold in np.split(np.arange(200), 4):
        rest = np.setdiff1d(np.arange(200), fold)
        mean, squares = by_least_squares(x[rest], y[rest], 0.0, 1e-15, True)
        new, full = x[fold] - x[rest].mean(0), x[rest] - x[rest].mean(0)
        variance = 1 + 1 / 150 + np.einsum("ij,ji->i", new, np.linalg.solve(full.T @ full, new.T))
        scale = np.sqrt(squares / 149 * variance)
        expected.append(scipy.stats.t.logpdf(y[fold], 149, y[rest].mean() + new @ mean, scale))
    np.testing.assert_allclose(model.cv_log_density_, np.concatenate(expected), atol=1e-3)


def test_chunks_say_when_little_noise_is_lost():
    """Their rows are gone, so that nothing can be refined."""
    for noise in (1e-5, 1e-7):
        x, y = little_noise(200, 20, noise)
        model = EntropicLinearRegression(0.0, 1e-15).partial_fit(x[:100], y[:100])
        _, squares = by_least_squares(x[:100], y[:100], 0.0, 1e-15, True)
        assert model.noise_rate_ == pytest.approx(squares / 2, rel=1e-4)
        if noise == 1e-5:
            with pytest.warns(UserWarning, match=r"noise.*sums.*fit\(\)"):
                model.partial_fit(x[100:], y[100:])
        else:
            with pytest.raises(ValueError, match=r"without error.*fit\(\)"):
                model.partial_fit(x[100:], y[100:])
    x, y = little_noise(200, 20, 1e-2)
    model = EntropicLinearRegression(0.0, 1e-15).partial_fit(x[:100], y[:100]).partial_fit(x[100:], y[100:])
    _, squares = by_least_squares(x, y, 0.0, 1e-15, True)
    assert model.noise_rate_ == pytest.approx(squares / 2, rel=1e-2)  # what is not said is right


def test_an_update_of_a_prior_keeps_little_noise():
    x, y = little_noise(200, 20, 1e-6)
    prior = NormalInverseGamma(torch.zeros(20), 1e-12 * torch.eye(20), 1.0, 1e-30)
    _, squares = by_least_squares(x, y, 0.0, 1e-12, False)
    assert prior.update(x, y).noise_rate == pytest.approx(squares / 2, rel=1e-5)
