"""Weights of rows: a response of weight v has variance σ² / v. Against dense formulas, repeats and scikit-learn."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from scipy.special import logsumexp
from sklearn.linear_model import BayesianRidge, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, LeaveOneOut

from pyro_dropout.entropic import EntropicLinearRegression, regression_path
from pyro_dropout.entropic._chunk import Chunk
from pyro_dropout.entropic._design import Design
from tests.support.enumeration import all_masks
from tests.support.scenarios import linear_data as data

SIZES = [(30, 5), (12, 40), (120, 150)]  # sums of products, a factor of n × n, conjugate gradients
FORMATS = [np.asarray, sp.csr_array, torch.as_tensor]


def sparse_data(n, p, seed=0):
    """With entries missing, some columns full and one nearly so."""
    x, y = data(n, p, seed)
    rng = np.random.default_rng(seed)
    x[:, 3:][rng.random((n, p - 3)) < 0.6] = 0.0
    x[0, 2] = 0.0
    return x, y, rng.gamma(0.5, 2.0, size=n) + 1e-3


class Dense:
    """The closed form (ENT) with V = diag(v) in every product, written out; the intercept is that of weighted means."""

    def __init__(self, x, y, v, rate, shrinkage, a0, b0, intercept):
        keep, total = 1 - np.broadcast_to(rate, x.shape[1]), v.sum()
        self.keep, self.intercept, self.total = keep, intercept, total
        self.x_mean, self.y_mean = v @ x / total * intercept, v @ y / total * intercept
        xc, yc = x - self.x_mean, y - self.y_mean
        gram = xc.T @ np.diag(v) @ xc
        self.precision = np.diag(shrinkage + keep * (1 - keep) * gram.diagonal()) + np.outer(keep, keep) * gram
        self.mean = np.linalg.solve(self.precision, keep * (xc.T @ (v * yc)))
        self.a = a0 + (len(y) - intercept) / 2
        self.b = b0 + (v @ yc**2 - self.mean @ self.precision @ self.mean) / 2
        self.coef = keep * self.mean

    def predict(self, new, v=1.0, dropout=False):
        """Mean, and variance in units of E σ²'s; that of masks."""
        centered = new - self.x_mean
        inverse = np.linalg.inv(self.precision)
        scaled = centered * self.keep
        spread = 1 / v + self.intercept / self.total + np.einsum("ij,jk,ik->i", scaled, inverse, scaled)
        second = self.mean**2 + self.b / (self.a - 1) * inverse.diagonal()
        masks = centered**2 @ (self.keep * (1 - self.keep) * second)
        return self.y_mean + scaled @ self.mean, spread, masks


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("convert", FORMATS)
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_a_weighted_fit_is_that_of_the_dense_formulas(n, p, convert, intercept):
    x, y, v = sparse_data(n, p)
    new = data(7, p, seed=1)[0]
    rate = np.random.default_rng(1).uniform(0.0, 0.8, size=p)
    prior = {"shrinkage": 0.7, "a0": 1.5, "b0": 0.8}
    model = EntropicLinearRegression(rate, **prior, fit_intercept=intercept).fit(convert(x), y, sample_weight=v)
    dense = Dense(x, y, v, rate, 0.7, 1.5, 0.8, intercept)
    close = {"rtol": 1e-8, "atol": 1e-10}
    np.testing.assert_allclose(model.coef_, dense.coef, **close)
    assert (model.concentration_, model.noise_rate_) == pytest.approx((dense.a, dense.b))
    assert model.intercept_ == pytest.approx(dense.y_mean - dense.x_mean @ dense.coef)
    mean, spread, masks = dense.predict(new)
    for dropout, variance in ((False, 0.0), (True, masks)):
        found, deviation = model.predict(convert(new), return_std=True, dropout=dropout)
        np.testing.assert_allclose(found, mean, **close)
        np.testing.assert_allclose(deviation**2, dense.b / (dense.a - 1) * spread + variance, **close)
    inverse = np.linalg.inv(dense.precision)
    marginal = model.posterior_.marginal([0, p - 1])
    np.testing.assert_allclose(marginal.scale**2, dense.b / dense.a * inverse.diagonal()[[0, p - 1]], **close)
    np.testing.assert_allclose(float(model.posterior_.precision.logdet), np.linalg.slogdet(dense.precision)[1])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "p"), [(6, 3), (4, 8)])
def test_posterior_and_log_normalizer_are_those_of_enumerated_masks(n, p, intercept):
    """``log q(w, σ²) + Σ_masks q(mask) log N(y | X (w * mask), σ² / v)``, anywhere; a flat intercept by quadrature."""
    x, y, v = sparse_data(n, p)
    rng = np.random.default_rng(2)
    rate = rng.uniform(0, 0.9, size=p)
    model = EntropicLinearRegression(rate, 0.7, a0=1.5, b0=0.8, fit_intercept=intercept).fit(x, y, v)
    z = all_masks(p).numpy()
    q = np.where(z > 0, 1 - rate, rate).prod(1)
    center = v @ x / v.sum() * intercept
    grid = np.linspace(-60, 60, 4001) if intercept else np.zeros(1)
    for _ in range(3):
        w, variance = rng.normal(size=p), 1 + rng.gamma(2.0)
        lines = (x - center) @ (w * z).T  # [n, masks]
        means = lines[..., None] + grid
        each = scipy.stats.norm.logpdf(y[:, None, None], means, np.sqrt(variance / v)[:, None, None])
        expected = np.einsum("nsg,s->g", each, q)
        expected = logsumexp(expected) + (math.log(grid[1] - grid[0]) if intercept else 0.0)
        expected += scipy.stats.norm.logpdf(w, 0, math.sqrt(variance / 0.7)).sum()
        expected += scipy.stats.invgamma.logpdf(variance, 1.5, scale=0.8)
        found = float(model.posterior_.log_prob(torch.tensor([*w, variance]))) + model.log_normalizer()
        assert found == pytest.approx(expected, abs=1e-8)


def test_log_normalizer_at_rate_zero_is_the_density_of_responses_of_these_variances():
    x, y, v = sparse_data(8, 4)
    model = EntropicLinearRegression(0.0, 2.0, a0=1.5, b0=0.8, fit_intercept=False).fit(x, y, v)
    scale = 0.8 / 1.5 * (np.diag(1 / v) + x @ x.T / 2.0)
    expected = scipy.stats.multivariate_t(np.zeros(8), scale, df=3.0).logpdf(y)
    assert model.log_normalizer() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("convert", FORMATS)
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_integer_weights_are_repeated_rows_but_for_the_count_of_responses(n, p, convert, intercept):
    """Coefficients, Λ and b are equal, and so is all with the count put into a0; log Z is of other data."""
    x, y, _ = sparse_data(n, p)
    times = np.random.default_rng(0).integers(0, 4, size=n)
    rows = np.repeat(np.arange(n), times)
    added = (len(rows) - (times > 0).sum()) / 2
    weighted = EntropicLinearRegression(0.3, 0.7, a0=1.0 + added, b0=0.8, fit_intercept=intercept)
    weighted.fit(convert(x), y, sample_weight=times)
    repeated = EntropicLinearRegression(0.3, 0.7, a0=1.0, b0=0.8, fit_intercept=intercept).fit(
        convert(x[rows]), y[rows]
    )
    alone = EntropicLinearRegression(0.3, 0.7, a0=1.0, b0=0.8, fit_intercept=intercept).fit(x, y, times)
    assert alone.concentration_ == pytest.approx(repeated.concentration_ - added)
    close = {"rtol": 1e-8, "atol": 1e-10}
    np.testing.assert_allclose(alone.coef_, repeated.coef_, **close)
    assert alone.noise_rate_ == pytest.approx(repeated.noise_rate_)
    assert alone.intercept_ == pytest.approx(repeated.intercept_)
    for dropout in (False, True):
        np.testing.assert_allclose(
            weighted.predict(x, return_std=True, dropout=dropout),
            repeated.predict(x, return_std=True, dropout=dropout),
            **close,
        )
    np.testing.assert_allclose(weighted.credible_interval(), repeated.credible_interval(), **close)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_rate_zero_is_weighted_ridge(n, p, intercept):
    x, y, v = sparse_data(n, p)
    model = EntropicLinearRegression(0.0, 2.5, fit_intercept=intercept).fit(x, y, v)
    ridge = Ridge(alpha=2.5, fit_intercept=intercept, solver="cholesky").fit(x, y, sample_weight=v)
    np.testing.assert_allclose(model.coef_, ridge.coef_, atol=1e-8)
    assert model.intercept_ == pytest.approx(ridge.intercept_, abs=1e-8)
    assert model.score(x, y, v) == pytest.approx(r2_score(y, ridge.predict(x), sample_weight=v))


def test_bayesian_ridge_with_its_own_hyperparameters():
    x, y, v = sparse_data(60, 5)
    peer = BayesianRidge().fit(x, y, sample_weight=v)
    model = EntropicLinearRegression(0.0, peer.lambda_ / peer.alpha_).fit(x, y, v)
    np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_the_unit_of_weights_is_that_of_the_noise_alone(n, p, intercept):
    """k times the weights and λ0: the same coefficients, σ² k times as large, the same densities of the data."""
    x, y, v = sparse_data(n, p)
    one = EntropicLinearRegression(0.3, 0.7, a0=2.0, b0=0.5, fit_intercept=intercept).fit(x, y, v)
    many = EntropicLinearRegression(0.3, 700.0, a0=2.0, b0=500.0, fit_intercept=intercept).fit(x, y, 1000 * v)
    np.testing.assert_allclose(many.coef_, one.coef_, rtol=1e-7, atol=1e-10)
    assert many.concentration_ == one.concentration_
    assert many.noise_rate_ == pytest.approx(1000 * one.noise_rate_)
    assert many.log_normalizer() == pytest.approx(one.log_normalizer())
    np.testing.assert_allclose(many.credible_interval(), one.credible_interval(), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("convert", FORMATS)
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_ones_are_no_weights_and_zeros_no_rows(n, p, convert):
    x, y, _ = sparse_data(n, p)
    plain = EntropicLinearRegression(0.3, a0=1.0, b0=1.0).fit(convert(x), y)
    for ones in (np.ones(n), 1, [1] * n, torch.ones(n), pd.Series(np.ones(n))):
        same = EntropicLinearRegression(0.3, a0=1.0, b0=1.0).fit(convert(x), y, sample_weight=ones)
        np.testing.assert_allclose(same.predict(x, return_std=True), plain.predict(x, return_std=True), rtol=1e-8)
        assert same.log_normalizer() == pytest.approx(plain.log_normalizer())
    v = np.arange(n) % 3.0
    less = EntropicLinearRegression(0.3, a0=1.0, b0=1.0).fit(convert(x[v > 0]), y[v > 0], sample_weight=v[v > 0])
    zeros = EntropicLinearRegression(0.3, a0=1.0, b0=1.0).fit(convert(x), y, sample_weight=v)
    np.testing.assert_array_equal(zeros.predict(x, return_std=True), less.predict(x, return_std=True))
    assert zeros.log_normalizer() == less.log_normalizer()


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("kinds", ["ddd", "sss", "dsd", "sds"])
@pytest.mark.parametrize("p", [5, 45, 200])
def test_weighted_chunks_are_the_whole(p, kinds, intercept):
    """With and without weights, dense and sparse, in a buffer that is used again."""
    x, y, v = sparse_data(60, p)
    v[20:40] = 1.0
    parts, buffer = EntropicLinearRegression(0.3, fit_intercept=intercept), np.empty(20)
    for kind, part in zip(kinds, np.split(np.arange(60), 3), strict=True):
        buffer[:] = v[part]
        weights = None if part[0] == 20 else buffer
        parts.partial_fit(sp.csr_array(x[part]) if kind == "s" else x[part].copy(), y[part], weights)
    buffer[:] = 7.0
    dense = Dense(x, y, v, 0.3, 1.0, 0.0, 0.0, intercept)
    np.testing.assert_allclose(parts.coef_, dense.coef, rtol=1e-7, atol=1e-9)
    assert parts.noise_rate_ == pytest.approx(dense.b, rel=1e-7)
    whole = EntropicLinearRegression(0.3, fit_intercept=intercept).fit(x, y, v)
    np.testing.assert_allclose(parts.predict(x, return_std=True), whole.predict(x, return_std=True), rtol=1e-7)
    assert parts.log_normalizer() == pytest.approx(whole.log_normalizer(), rel=1e-8)


@pytest.mark.parametrize("convert", FORMATS)
@pytest.mark.parametrize("cv", [KFold(3, shuffle=True, random_state=0), LeaveOneOut()], ids=["3", "leave-one-out"])
@pytest.mark.parametrize(("p", "intercept"), [(4, True), (4, False), (40, True)])
def test_held_out_densities_are_of_responses_of_their_weights(p, intercept, cv, convert):
    x, y, v = sparse_data(24, p)
    ((model,),) = regression_path(
        convert(x), y, [0.4], [0.3], cv=cv, sample_weight=v, a0=1.0, b0=0.5, fit_intercept=intercept
    )
    expected = []
    for train, test in cv.split(x):
        dense = Dense(x[train], y[train], v[train], 0.4, 0.3, 1.0, 0.5, intercept)
        mean, spread, _ = dense.predict(x[test], v[test])
        expected.append(scipy.stats.t.logpdf(y[test], 2 * dense.a, mean, np.sqrt(dense.b / dense.a * spread)))
    np.testing.assert_allclose(model.cv_log_density_, np.concatenate(expected), rtol=1e-8)
    with pytest.raises(ValueError, match="2 rows have weight 0: leave them out"):
        regression_path(convert(x), y, [0.4], [0.3], cv=cv, sample_weight=np.r_[0.0, 0.0, v[2:]])
    assert regression_path(convert(x), y, [0.4], [0.3], sample_weight=np.r_[0.0, 0.0, v[2:]])[0][0].intercept_


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array])
def test_exported_log_likelihoods_are_of_the_weights(convert):
    x, y, v = sparse_data(12, 4)
    model = EntropicLinearRegression(0.3, a0=2.0, b0=1.0).fit(convert(x), y, v)
    groups = model.to_arviz(convert(x), y, n_draws=4, random_state=0, sample_weight=v)
    draws = model.sample(4, np.random.RandomState(0))
    z, center = all_masks(4).numpy(), v @ x / v.sum()
    q = np.where(z > 0, 0.7, 0.3).prod(1)
    for s in range(4):
        scale = np.sqrt(draws.noise_variance[s] / v)
        expected = scipy.stats.norm.logpdf(y, draws.intercept[s] + x @ draws.coef[s], scale)
        np.testing.assert_allclose(groups["log_likelihood"]["y"].values[0, s], expected)
        base, w = draws.intercept[s] + center @ draws.coef[s], draws.coef[s] / 0.7
        each = [scipy.stats.norm.logpdf(y, base + (x - center) @ (w * m), scale) for m in z]
        np.testing.assert_allclose(groups["log_likelihood"]["y_constrained"].values[0, s], q @ np.array(each))
    with pytest.raises(ValueError, match="1 rows have weight 0"):
        model.to_arviz(x, y, sample_weight=np.r_[0.0, v[1:]])
    with pytest.raises(ValueError, match="X and y, and their weights"):
        model.to_arviz(sample_weight=v)


@pytest.mark.parametrize("n_full", [0, 3])
def test_squares_of_weighted_sparse_columns_lose_no_digits(n_full):
    """Constant columns, full or nearly so, beside weights of many magnitudes."""
    rng = np.random.default_rng(0)
    x = np.full((50, 6), 1000.0)
    x[0, n_full:] = 0.0
    v = 10.0 ** rng.uniform(-6, 6, size=50)
    center = torch.as_tensor(v @ x / v.sum())
    expected = v @ (x - center.numpy()) ** 2
    for matrix in (sp.csr_array(x), x):
        found = Design(matrix, center, torch.as_tensor(v).sqrt()).squares()
        np.testing.assert_allclose(found[n_full:], expected[n_full:], rtol=1e-6)
        np.testing.assert_allclose(found[:n_full], 0.0, atol=1e-12 * expected.max())


@pytest.mark.parametrize("centered", [True, False])
def test_products_of_a_weighted_design_are_those_of_its_dense_matrix(centered):
    x, _, v = sparse_data(20, 30)
    other = sparse_data(7, 30, seed=1)[0]
    root, center = torch.as_tensor(v).sqrt(), torch.as_tensor(v @ x / v.sum()) if centered else None
    shift = 0.0 if center is None else center
    dense, dense_other = root[:, None] * (torch.as_tensor(x) - shift), torch.as_tensor(other) - shift
    torch.manual_seed(0)
    a, b, index = torch.rand(30, 3, dtype=dense.dtype), torch.rand(20, 3, dtype=dense.dtype), torch.randperm(30)
    square = b @ b.T
    for matrix in (x, sp.csr_array(x)):
        design = Design(matrix, center, root)
        scaled, new = design.scaled(a[:, 0]), Design(type(matrix)(other) if matrix is not x else other, center)
        for found, expected in (
            (design.matvec(a), dense @ a),
            (design.matvec(a[:, 0]), dense @ a[:, 0]),
            (design.rmatvec(b), dense.T @ b),
            (design.rmatvec(b[:, 0]), dense.T @ b[:, 0]),
            (design.squares(), dense.square().sum(0)),
            (design.gram(), dense.T @ dense),
            (design.outer(a[:, 0]), dense * a[:, 0] @ dense.T),
            (design.outer(a[:, 0], new), dense * a[:, 0] @ dense_other.T),
            (new.outer(a[:, 0], design), dense_other * a[:, 0] @ dense.T),
            (design.weighted_squares(a), dense.square() @ a),
            (design.weighted_squares(a[:, 0]), dense.square() @ a[:, 0]),
            (design.to_dense(), dense),
            (scaled.matvec(a), dense * a[:, 0] @ a),
            (scaled.squares(), (dense * a[:, 0]).square().sum(0)),
            (design.column_forms(square, index), torch.linalg.vecdot(dense, square @ dense, dim=0)[index]),
        ):
            torch.testing.assert_close(found, expected)


def test_stored_duplicates_are_their_sums():
    x, y, v = sparse_data(12, 4)
    cell = sp.csr_array((np.repeat(x.ravel() / 2, 2), np.repeat(np.tile(np.arange(4), 12), 2), np.arange(13) * 8))
    for p_more in (0, 20):
        wide = sp.csr_array((cell.data, cell.indices, cell.indptr), shape=(12, 4 + p_more))
        before = wide.data.copy()
        for weights in (None, v):
            found = EntropicLinearRegression(0.3).fit(wide, y, weights)
            expected = EntropicLinearRegression(0.3).fit(np.pad(x, ((0, 0), (0, p_more))), y, weights)
            np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-10)
        np.testing.assert_array_equal(wide.data, before)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones(9), ValueError, r"one number for each of 10 rows, but found shape \(9,\)"),
        (np.ones((10, 1)), ValueError, r"one number for each of 10 rows, but found shape \(10, 1\)"),
        (np.r_[-1.0, np.ones(9)], ValueError, "finite and at least 0, but found -1.0"),
        (np.r_[np.nan, np.ones(9)], ValueError, "finite and at least 0, but found nan"),
        (np.r_[np.inf, np.ones(9)], ValueError, "finite and at least 0, but found inf"),
        (np.zeros(10), ValueError, "positive for one row or more, but found zeros alone"),
        (0.0, ValueError, "positive for one row or more"),
        (["a"] * 10, TypeError, "sample_weight must be numbers"),
    ],
)
def test_wrong_weights_are_named_and_lose_nothing(weights, error, message):
    x, y = data(10, 3)
    model = EntropicLinearRegression().fit(x, y)
    before = model.coef_.copy()
    for call in (
        model.fit,
        model.partial_fit,
        lambda *args: regression_path(*args[:2], [0.1], [1.0], sample_weight=weights),
    ):
        with pytest.raises(error, match=message):
            call(x, y, weights)
    np.testing.assert_array_equal(model.coef_, before)


def test_a_chunk_of_one_weight_for_all_rows():
    x, y = data(10, 3)
    assert Chunk.of(x, y, 2.0).weights.tolist() == [2.0] * 10
    one, each = (EntropicLinearRegression().fit(x, y, v) for v in (2.0, np.full(10, 2.0)))
    np.testing.assert_array_equal(one.coef_, each.coef_)
