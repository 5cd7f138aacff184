"""The closed form: against enumeration, textbooks, scikit-learn, itself by another route, and bad input."""

import math
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import BayesianRidge, Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_dropout.entropic import EntropicLinearRegression
from tests.support.enumeration import all_masks
from tests.support.scenarios import linear_data as data

RNG = np.random.default_rng(0)


@parametrize_with_checks([EntropicLinearRegression(), EntropicLinearRegression(rate=0.0, shrinkage=0.1)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


# The constraint itself


def potential_by_enumeration(x, y, w, variance, rate, shrinkage, a0, b0):
    """``log q(w, σ²) + Σ_masks q(mask) log N(y | X (w * mask), σ²)``, with rates per covariate, eq. 10 to 12."""
    z = all_masks(x.shape[1]).numpy()
    q = np.where(z > 0, 1 - rate, rate).prod(1)
    normal = scipy.stats.norm
    likelihood = sum(
        qs * normal.logpdf(y, x @ (w * zs), math.sqrt(variance)).sum() for qs, zs in zip(q, z, strict=True)
    )
    prior = normal.logpdf(w, 0, math.sqrt(variance / shrinkage)).sum()
    return likelihood + prior + scipy.stats.invgamma.logpdf(variance, a0, scale=b0)


@pytest.mark.parametrize(("n", "p"), [(6, 3), (4, 8), (12, 8)])
def test_posterior_and_log_normalizer_are_those_of_enumerated_masks(n, p):
    """ENT eq. 13: log posterior + log Z is the enumerated potential, anywhere."""
    x, y = data(n, p)
    rate = RNG.uniform(0, 0.9, size=p)
    model = EntropicLinearRegression(rate, shrinkage=0.7, a0=1.5, b0=0.8, fit_intercept=False).fit(x, y)
    for _ in range(5):
        w, variance = RNG.normal(size=p), RNG.gamma(2.0)
        value = torch.tensor([*w, variance])
        expected = potential_by_enumeration(x, y, w, variance, rate, 0.7, 1.5, 0.8)
        assert float(model.posterior_.log_prob(value)) + model.log_normalizer() == pytest.approx(expected, abs=1e-10)


def test_log_normalizer_at_rate_zero_is_the_marginal_likelihood():
    x, y = data(8, 3)
    model = EntropicLinearRegression(0.0, shrinkage=2.0, a0=1.5, b0=0.8, fit_intercept=False).fit(x, y)
    scale = 0.8 / 1.5 * (np.eye(8) + x @ x.T / 2.0)
    expected = scipy.stats.multivariate_t(np.zeros(8), scale, df=3.0).logpdf(y)
    assert model.log_normalizer() == pytest.approx(expected, abs=1e-10)


def test_log_normalizer_bounds_the_marginal_likelihood_of_a_model_that_draws_masks():
    """Jensen, with σ² integrated over: enumerate one mask for all data."""
    x, y = data(5, 3)
    rate = 0.3
    model = EntropicLinearRegression(rate, 2.0, a0=1.5, b0=0.8, fit_intercept=False).fit(x, y)
    draws = model.sample(20_000, random_state=0)
    total = []
    for z in all_masks(3).numpy():
        scale = 0.8 / 1.5 * (np.eye(5) + (x * z) @ (x * z).T / 2.0)
        marginal = scipy.stats.multivariate_t(np.zeros(5), scale, df=3.0).logpdf(y)
        total.append(marginal + np.log(np.where(z > 0, 1 - rate, rate)).sum())
    assert len(draws.coef) == 20_000
    assert model.log_normalizer() < scipy.special.logsumexp(total)


def test_log_normalizer_has_its_maximum_at_the_right_shrinkage():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 60))
    y = x @ rng.normal(size=60) * math.sqrt(1 / 25) + rng.normal(size=400)
    values = {s: EntropicLinearRegression(0.0, s).fit(x, y).log_normalizer() for s in (1, 5, 25, 125, 625)}
    assert max(values, key=values.get) == 25


# Textbooks and peers


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "p"), [(30, 5), (10, 40)])
def test_rate_zero_is_ridge_and_textbook_conjugate_regression(n, p, intercept):
    x, y = data(n, p)
    model = EntropicLinearRegression(0.0, 2.5, a0=2.0, b0=1.0, fit_intercept=intercept).fit(x, y)
    ridge = Ridge(alpha=2.5, fit_intercept=intercept, solver="svd").fit(x, y)
    np.testing.assert_allclose(model.coef_, ridge.coef_, atol=1e-8)
    assert model.intercept_ == pytest.approx(ridge.intercept_, abs=1e-8)
    # the textbook, with the intercept as a column whose prior precision is nothing
    full = np.column_stack([np.ones(n), x])[:, 0 if intercept else 1 :]
    prior = np.diag([0.0] * intercept + [2.5] * p)
    precision = full.T @ full + prior
    mean = np.linalg.solve(precision, full.T @ y)
    a = 2.0 + n / 2 - intercept / 2
    b = 1.0 + 0.5 * (y @ y - mean @ precision @ mean)
    covariance = np.linalg.inv(precision) * b / (a - 1)
    assert (model.concentration_, model.noise_rate_) == pytest.approx((a, b))
    new = RNG.normal(size=(7, p))
    new_full = np.column_stack([np.ones(7), new])[:, 0 if intercept else 1 :]
    predicted, deviation = model.predict(new, return_std=True)
    np.testing.assert_allclose(predicted, new_full @ mean)
    expected = np.sqrt(b / (a - 1) + np.einsum("ij,jk,ik->i", new_full, covariance, new_full))
    np.testing.assert_allclose(deviation, expected)
    variance = model.posterior_.variance[:-1].numpy()
    np.testing.assert_allclose(variance, covariance.diagonal()[intercept:])


def test_bayesian_ridge_with_its_own_hyperparameters():
    x, y = load_diabetes(return_X_y=True)
    peer = BayesianRidge().fit(x, y)
    model = EntropicLinearRegression(0.0, peer.lambda_ / peer.alpha_).fit(x, y)
    np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-8)


def test_maximum_likelihood_is_marginalised_corrupted_features():
    """van der Maaten et al. 2013: least squares on all corrupted copies, weighted by their probability."""
    x, y = data(9, 4)
    rate = np.array([0.1, 0.5, 0.3, 0.7])
    z = all_masks(4).numpy()
    q = np.where(z > 0, 1 - rate, rate).prod(1)
    copies = np.concatenate([x * zs * math.sqrt(qs) for zs, qs in zip(z, q, strict=True)])
    targets = np.concatenate([y * math.sqrt(qs) for qs in q])
    expected = np.linalg.lstsq(copies, targets, rcond=None)[0]
    model = EntropicLinearRegression(rate, shrinkage=0.0, fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(model.posterior_.loc, expected, atol=1e-10)


@pytest.mark.parametrize(("n", "p"), [(30, 5), (6, 20)])
def test_high_rates_without_shrinkage_tend_to_marginal_regressions(n, p):
    x, y = data(n, p)
    marginal = x.T @ y / (x**2).sum(0)
    distance = [
        abs(EntropicLinearRegression(f, 0.0, fit_intercept=False).fit(x, y).posterior_.loc.numpy() - marginal).max()
        for f in (0.9, 0.99, 0.999, 1 - 1e-6)
    ]
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < 1e-4


# Two routes, chunks, formats


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "p"), [(5, 200), (40, 60), (60, 60), (60, 40), (200, 5)])
def test_dense_and_sparse_and_both_routes_agree(n, p, intercept):
    """p × p by Cholesky is written out here; n × n is what the package does for p > n."""
    x, y = data(n, p)
    x[RNG.random((n, p)) < 0.5] = 0.0
    new = data(11, p, seed=1)[0]
    for rate in (0.0, 0.4):
        keep, center = 1 - rate, x.mean(0) * intercept
        xc, yc, newc = x - center, y - y.mean() * intercept, new - center
        gram = xc.T @ xc
        precision = np.diag(1.5 + rate * keep * gram.diagonal()) + keep**2 * gram
        mean = keep * np.linalg.solve(precision, xc.T @ yc)
        b, a = 0.5 * (yc @ yc - mean @ precision @ mean), 0.5 * (n - intercept)
        inverse = np.linalg.inv(precision)
        spread = b / (a - 1) * (1 + intercept / n + keep**2 * np.einsum("ij,jk,ik->i", newc, inverse, newc))
        second = mean**2 + b / (a - 1) * inverse.diagonal()
        dropped = spread + rate * keep * newc**2 @ second
        for convert in (np.asarray, sp.csr_matrix, sp.csc_array, torch.as_tensor):
            model = EntropicLinearRegression(rate, 1.5, fit_intercept=intercept).fit(convert(x), y)
            close = {"rtol": 1e-8, "atol": 1e-10}
            np.testing.assert_allclose(model.coef_, keep * mean, **close)
            np.testing.assert_allclose(model.posterior_.loc, mean, **close)
            assert model.noise_rate_ == pytest.approx(b, rel=1e-8)
            for dropout, variance in ((False, spread), (True, dropped)):
                predicted, deviation = model.predict(convert(new), return_std=True, dropout=dropout)
                np.testing.assert_allclose(predicted, y.mean() * intercept + keep * newc @ mean, **close)
                np.testing.assert_allclose(deviation**2, variance, **close)
            some = np.array([0, p - 1, p // 2])
            marginal = model.posterior_.marginal(some)
            np.testing.assert_allclose(marginal.scale**2, b / a * inverse.diagonal()[some], **close)
            np.testing.assert_allclose(float(model.posterior_.precision.logdet), np.linalg.slogdet(precision)[1])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("p", [4, 25, 200])
def test_chunks_are_the_whole(p, convert, intercept):
    x, y = data(90, p)
    x, y = x + 1000.0 * (convert is np.asarray), y + 500.0
    whole = EntropicLinearRegression(0.3, fit_intercept=intercept).fit(convert(x), y)
    parts = EntropicLinearRegression(0.3, fit_intercept=intercept)
    for part in np.split(np.arange(90), [3, 10, 40]):
        parts.partial_fit(convert(x[part]), y[part])
    tolerance = {"rtol": 1e-7, "atol": 1e-7}
    np.testing.assert_allclose(parts.coef_, whole.coef_, **tolerance)
    np.testing.assert_allclose(
        parts.predict(x[:5], return_std=True), whole.predict(x[:5], return_std=True), **tolerance
    )
    assert parts.log_normalizer() == pytest.approx(whole.log_normalizer(), rel=1e-8)
    assert (parts._data.rows is None) == (p < 90)


@pytest.mark.filterwarnings("ignore:\\s*ArviZ is undergoing a major refactor:FutureWarning")
def test_arviz_takes_exact_draws():
    x, y = data(30, 3)
    model = EntropicLinearRegression(0.2).fit(x, y)
    idata = model.to_arviz(x, y, n_draws=4000, random_state=0, feature_names=["a", "b", "c"])
    posterior = idata["posterior"]
    assert posterior["coef"].dims == ("chain", "draw", "feature")
    assert list(posterior["coef"]["feature"].values) == ["a", "b", "c"]
    np.testing.assert_allclose(posterior["coef"].mean(("chain", "draw")), model.coef_, atol=0.05)
    draws = model.sample(4000, np.random.RandomState(0))
    np.testing.assert_allclose(posterior["noise_variance"].values[0], draws.noise_variance)
    mean = draws.intercept[:, None] + draws.coef @ x.T
    expected = scipy.stats.norm(mean, np.sqrt(draws.noise_variance)[:, None]).logpdf(y)
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], expected)
    replicated = idata["posterior_predictive"]["y"]
    np.testing.assert_allclose(replicated.mean(("chain", "draw")), model.predict(x), atol=0.15)


def test_float32_stays_float32():
    x, y = data(30, 5)
    model = EntropicLinearRegression().fit(x.astype(np.float32), y.astype(np.float32))
    double = EntropicLinearRegression().fit(x, y)
    assert model.coef_.dtype == model.predict(x.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(model.coef_, double.coef_, rtol=1e-4)
    assert double.predict(x).dtype == np.float64


# Intervals, calibration


def test_intervals_hold_their_mass_of_draws():
    x, y = data(30, 4)
    model = EntropicLinearRegression(0.2).fit(x, y)
    draws = model.sample(40_000, random_state=2)
    low, high = model.credible_interval(0.8).T
    share = ((draws.coef > low) & (draws.coef < high)).mean(0)
    assert (abs(share - 0.8) < 5 * 0.4 / 200).all()
    np.testing.assert_allclose(model.credible_interval(0.8, index=[2]), np.stack([low, high], 1)[[2]])
    new = data(3, 4, seed=2)[0]
    low, high = model.predictive_interval(new, 0.9).T
    distribution = model.predictive(new)
    assert np.allclose(distribution.loc, (low + high) / 2)
    t = scipy.stats.t(float(distribution.df[0]))
    np.testing.assert_allclose(t.cdf((high - distribution.loc.numpy()) / distribution.scale.numpy()), 0.95)


def test_simulation_based_calibration_without_dropout():
    """Ranks of the truth among posterior draws are uniform (Talts et al. 2018)."""
    rng = np.random.default_rng(0)
    ranks = []
    for seed in range(600):
        variance = 1 / rng.gamma(3.0, 1 / 2.0)
        w = rng.normal(size=3) * math.sqrt(variance / 0.5)
        x = rng.normal(size=(7, 3))
        y = x @ w + rng.normal(size=7) * math.sqrt(variance)
        model = EntropicLinearRegression(0.0, 0.5, a0=3.0, b0=2.0, fit_intercept=False).fit(x, y)
        draws = model.sample(19, random_state=seed)
        ranks.append([*(draws.coef < w).sum(0), (draws.noise_variance < variance).sum()])
    for column in np.array(ranks).T:
        assert scipy.stats.chisquare(np.bincount(column, minlength=20)).pvalue > 1e-3


# Bad input, and input that only looks bad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shrinkage": -1.0}, "shrinkage must be a finite number of at least 0, but found -1"),
        ({"a0": math.nan}, "a0 must be a finite number"),
        ({"b0": -0.1}, "b0 must be a finite number"),
        ({"rate": 1.0}, r"rate is the probability of dropping a covariate and lies in \[0, 1\)"),
        ({"rate": -0.1}, r"lies in \[0, 1\)"),
        ({"rate": [0.1, 0.2]}, "one for each of 3 covariates"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EntropicLinearRegression(**arguments).fit(*data(10, 3))


def test_wrong_data():
    x, y = data(10, 3)
    broken = x.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        EntropicLinearRegression().fit(broken, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        EntropicLinearRegression().fit(x, y[:-1])
    with pytest.raises(ValueError, match=r"0 feature\(s\)"):
        EntropicLinearRegression().fit(x[:, :0], y)
    model = EntropicLinearRegression().fit(x, y)
    with pytest.raises(ValueError, match="2 features, but EntropicLinearRegression is expecting 3"):
        model.predict(x[:, :2])
    with pytest.raises(ValueError, match="expecting 3 features"):
        model.partial_fit(x[:, :2], y)
    with pytest.raises(ValueError, match="mass is the probability inside of an interval"):
        model.credible_interval(1.5)
    with pytest.raises(NotFittedError):
        EntropicLinearRegression().sample()


def test_one_observation():
    x, y = data(1, 3)
    with pytest.raises(ValueError, match="1 sample with an intercept and Jeffreys"):
        EntropicLinearRegression().fit(x, y)
    model = EntropicLinearRegression(a0=1.0, b0=1.0).fit(x, y)
    assert model.coef_ == pytest.approx(np.zeros(3))
    assert model.predict(x) == pytest.approx(y)
    model = EntropicLinearRegression(0.2, a0=1.0, b0=1.0, fit_intercept=False).fit(x, y)
    exponent = np.diag(1 + 0.16 * x[0] ** 2) + 0.64 * np.outer(x[0], x[0])
    np.testing.assert_allclose(model.coef_, 0.8 * np.linalg.solve(exponent, 0.8 * x[0] * y[0]))


@pytest.mark.parametrize(("n", "p"), [(20, 4), (5, 12)])
def test_constant_duplicated_and_zero_columns_and_duplicated_rows(n, p):
    x, y = data(n, p)
    x[:, 1] = 3.0
    x[:, 2] = x[:, 0]
    x = np.concatenate([x, x[:2]])
    y = np.concatenate([y, y[:2]])
    model = EntropicLinearRegression(0.2).fit(x, y)
    assert model.coef_[1] == pytest.approx(0.0, abs=1e-10)  # the intercept has it
    assert model.coef_[0] == pytest.approx(model.coef_[2])
    assert np.isfinite(model.predict(x, return_std=True)).all()
    with pytest.raises(ValueError, match=r"not positive definite|neither shrunk nor dropped"):
        EntropicLinearRegression(0.2, shrinkage=0.0).fit(x, y)  # nothing determines the constant column's


def test_more_columns_than_rows_need_shrinkage_or_dropout():
    x, y = data(5, 12)
    with pytest.raises(ValueError, match="neither shrunk nor dropped: the posterior is improper"):
        EntropicLinearRegression(0.0, 0.0).fit(x, y)
    assert np.isfinite(EntropicLinearRegression(0.3, 0.0).fit(x, y).coef_).all()


def test_targets_without_noise():
    x, _ = data(10, 3)
    for y in (np.full(10, 2.0), np.zeros(10)):
        with pytest.raises(ValueError, match="fitted without error"):
            EntropicLinearRegression().fit(x, y)
        model = EntropicLinearRegression(b0=1.0).fit(x, y)
        np.testing.assert_allclose(model.predict(x), y, atol=1e-10)


def test_shrinkage_zero_has_no_log_normalizer():
    model = EntropicLinearRegression(0.2, 0.0).fit(*data(10, 3))
    with pytest.raises(ValueError, match="log Z has no meaning"):
        model.log_normalizer()


def test_a_failed_partial_fit_loses_nothing():
    x, y = data(30, 3)
    model = EntropicLinearRegression(0.2).fit(x, y)
    before = model.coef_.copy()
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(x * np.nan, y)
    assert np.array_equal(model.coef_, before)
    with pytest.raises(ValueError, match="1 sample with an intercept"):
        (first := EntropicLinearRegression(0.2)).partial_fit(x[:1], y[:1])
    np.testing.assert_allclose(first.partial_fit(x, y).coef_, before)
    model.partial_fit(x, y)
    np.testing.assert_allclose(model.coef_, EntropicLinearRegression(0.2).fit(np.tile(x, (2, 1)), np.tile(y, 2)).coef_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clone(model).get_params() == model.get_params()
