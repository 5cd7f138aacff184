"""Fewer rows than columns: conjugate gradients against dense algebra, and a factor only for what needs it."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import Ridge

import pyro_dropout._settings as settings
from pyro_dropout.entropic import EntropicLinearRegression, _rows
from pyro_dropout.entropic._design import Design
from pyro_dropout.entropic._gradients import conjugate_gradients

F64 = torch.float64


def documents(n, p, words=30, seed=0):
    """Words by Zipf's law: a few columns that all rows have, many that one has."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, p + 1)
    columns = rng.choice(p, size=(n, words), p=frequency / frequency.sum()).ravel()
    x = sp.csr_array((np.ones(n * words), (np.repeat(np.arange(n), words), columns)), shape=(n, p))
    x.sum_duplicates()
    return x, rng.choice([-1.0, 1.0], n)


def dense_algebra(x, y, rate, shrinkage, intercept):
    keep, n = 1 - rate, len(y)
    xc, yc = x - x.mean(0) * intercept, y - y.mean() * intercept
    gram = xc.T @ xc
    precision = np.diag(shrinkage + rate * keep * gram.diagonal()) + keep**2 * gram
    mean = keep * np.linalg.solve(precision, xc.T @ yc)
    return mean, 0.5 * (yc @ yc - mean @ precision @ mean), 0.5 * (n - intercept), precision


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("convert", [sp.csr_array, lambda x: x.toarray()], ids=["sparse", "dense"])
@pytest.mark.parametrize(("rate", "shrinkage"), [(0.3, 1.0), (0.05, 1e-3), (0.5, 0.0), (0.0, 1.0), (0.0, 1e-4)])
def test_means_and_noise_are_those_of_the_dense_system(rate, shrinkage, convert, intercept):
    x, y = documents(150, 400)
    if shrinkage == 0:
        x = x[:, np.flatnonzero(x.sum(0))]  # columns that are seen
    model = EntropicLinearRegression(rate, shrinkage, fit_intercept=intercept).fit(convert(x), y)
    mean, b, _, _ = dense_algebra(x.toarray(), y, rate, shrinkage, intercept)
    np.testing.assert_allclose(model.posterior_.loc, mean, rtol=1e-8, atol=1e-9 * abs(mean).max())
    assert model.noise_rate_ == pytest.approx(b, rel=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_factor_is_made_for_deviations_determinants_and_draws_alone(intercept):
    x, y = documents(300, 2000)
    model = EntropicLinearRegression(0.3, fit_intercept=intercept).fit(x, y)
    mean, b, a, precision = dense_algebra(x.toarray(), y, 0.3, 1.0, intercept)

    def factored(m):
        return "factor" in vars(m._fitted.precision)

    np.testing.assert_allclose(model.predict(x[:5]) - model.intercept_, 0.7 * x[:5] @ mean, atol=1e-10)
    model.posterior_.split(torch.cat([model.posterior_.loc, torch.ones(1, dtype=torch.float64)]))
    assert not factored(model)
    new = documents(7, 2000, seed=1)[0].toarray() - x.toarray().mean(0) * intercept
    inverse = np.linalg.inv(precision)
    asked = {
        "deviation": lambda m: (m.predictive(new + x.toarray().mean(0) * intercept).scale ** 2).numpy(),
        "marginals": lambda m: (m.posterior_.marginal([3, 1999]).scale ** 2).numpy(),
        "determinant": lambda m: float(m.posterior_.precision.logdet),
        "draws": lambda m: m.sample(2, random_state=0).coef.shape,
    }
    expected = {
        "deviation": b / a * (1 + intercept / 300 + 0.49 * np.einsum("ij,jk,ik->i", new, inverse, new)),
        "marginals": b / a * inverse.diagonal()[[3, 1999]],
        "determinant": np.linalg.slogdet(precision)[1],
        "draws": (2, 2000),
    }
    for name, ask in asked.items():
        one = copy.deepcopy(model)
        np.testing.assert_allclose(ask(one), expected[name], rtol=1e-8, err_msg=name)
        assert factored(one), name
        np.testing.assert_allclose(ask(pickle.loads(pickle.dumps(one))), expected[name], rtol=1e-8)


def products(monkeypatch, **arguments):
    """How many products with M a fit took, and the model."""
    found = []

    def counted(apply, b, iterations):
        return conjugate_gradients(lambda v: found.append(1) or apply(v), b, iterations)

    monkeypatch.setattr(_rows, "conjugate_gradients", counted)
    x, y = documents(400, 20_000, words=200)
    return EntropicLinearRegression(**arguments).fit(x, y), len(found), x, y


@pytest.mark.parametrize("shrinkage", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_with_dropout_a_few_products_are_enough_whatever_the_shrinkage(rate, shrinkage, monkeypatch):
    model, count, _, _ = products(monkeypatch, rate=rate, shrinkage=shrinkage)
    assert count < 45
    assert "factor" not in vars(model._fitted.precision)


def test_where_gradients_do_not_converge_the_factor_solves(monkeypatch):
    model, count, x, y = products(monkeypatch, rate=0.0, shrinkage=1e-6)
    assert count == _rows.ITERATIONS + 1
    assert "factor" in vars(model._fitted.precision)
    ridge = Ridge(alpha=1e-6, solver="lsqr", tol=1e-14, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(model.coef_, ridge.coef_, atol=1e-7)


def test_conjugate_gradients_against_a_direct_solution():
    rng = np.random.default_rng(0)
    root, b = torch.as_tensor(rng.normal(size=(40, 12))), torch.as_tensor(rng.normal(size=40))
    matrix = torch.eye(40, dtype=F64) + root @ root.T
    found = conjugate_gradients(matrix.matmul, b, 100)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b), rtol=1e-11, atol=1e-12)
    assert conjugate_gradients(matrix.matmul, b, 3) is None
    assert conjugate_gradients(matrix.matmul, b * 0, 3).tolist() == [0.0] * 40
    assert conjugate_gradients(matrix.matmul, b * torch.nan, 3) is None


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("block", [2**26, 50])
def test_quadratic_forms_of_columns_are_those_of_dense_ones(centered, block, monkeypatch):
    """Columns of none, one, some and all entries, in any order."""
    monkeypatch.setattr(settings, "row_block", block)
    x, _ = documents(60, 300, words=12)
    center = torch.as_tensor(x.toarray().mean(0)) if centered else None
    root = torch.as_tensor(np.random.default_rng(0).normal(size=(60, 60)))
    dense = torch.as_tensor(x.toarray()) - (0 if center is None else center)
    expected = ((root @ root.T @ dense) * dense).sum(0)
    index = torch.as_tensor(np.random.default_rng(1).permutation(300))
    for design in (Design(x, center), Design(x.toarray(), center)):
        torch.testing.assert_close(design.column_forms(root @ root.T, index), expected[index])
        torch.testing.assert_close(design.column_forms(root @ root.T, index[:0]), expected[:0])
