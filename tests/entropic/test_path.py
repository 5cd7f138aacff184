"""A grid of entropic regressions is its models, each by itself; which of them predicts."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from sklearn.model_selection import KFold, LeaveOneOut

from pyro_dropout.entropic import EntropicLinearRegression, regression_path
from tests.support.scenarios import linear_data as data


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("p", [5, 60])
def test_a_path_is_its_models(p, convert):
    x, y = data(30, p)
    rates, shrinkages = [0.0, 0.3], [0.1, 1.0, 10.0]
    path = regression_path(convert(x), y, rates, shrinkages, b0=0.5)
    for row, rate in zip(path, rates, strict=True):
        for model, shrinkage in zip(row, shrinkages, strict=True):
            alone = EntropicLinearRegression(rate, shrinkage, b0=0.5).fit(convert(x), y)
            np.testing.assert_allclose(model.coef_, alone.coef_)
            assert model.log_normalizer() == pytest.approx(alone.log_normalizer())
    before = path[1][1].coef_.copy()
    path[1][0].partial_fit(convert(x), y)
    path[1][1].partial_fit(convert(x[:1]), y[:1])
    expected = EntropicLinearRegression(0.3, 1.0, b0=0.5).fit(convert(np.concatenate([x, x[:1]])), [*y, y[0]])
    np.testing.assert_allclose(path[1][1].coef_, expected.coef_, atol=1e-12)
    assert not np.allclose(before, path[1][1].coef_)


# Choosing among them


def held_out_by_refits(x, y, splits, rate, shrinkage, a0, b0, intercept):
    """Each training set by itself, in numpy, with the Student-t of scipy."""
    scores = []
    for train, test in splits:
        keep, n = 1 - rate, len(train)
        center, y_mean = x[train].mean(0) * intercept, y[train].mean() * intercept
        xc, yc = x[train] - center, y[train] - y_mean
        gram = xc.T @ xc
        precision = np.diag(shrinkage + rate * keep * gram.diagonal()) + np.outer(keep, keep) * gram
        mean = np.linalg.solve(precision, keep * (xc.T @ yc))
        a, b = a0 + (n - intercept) / 2, b0 + (yc @ yc - mean @ precision @ mean) / 2
        new = keep * (x[test] - center)
        variance = 1 + intercept / n + np.einsum("ij,ji->i", new, np.linalg.solve(precision, new.T))
        scores.append(scipy.stats.t.logpdf(y[test], 2 * a, y_mean + new @ mean, np.sqrt(b / a * variance)))
    return np.concatenate(scores)


SHUFFLED = KFold(4, shuffle=True, random_state=0)


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array, torch.as_tensor])
@pytest.mark.parametrize("cv", [3, LeaveOneOut(), SHUFFLED], ids=["3", "leave-one-out", "shuffled"])
@pytest.mark.parametrize(("p", "intercept"), [(4, True), (4, False), (40, True), (40, False)])
def test_held_out_densities_are_those_of_refits(p, intercept, cv, convert):
    x, y = data(24, p)
    rates, shrinkages = [0.0, 0.4, np.linspace(0.0, 0.8, p)], [0.3, 3.0]
    kwargs = {"a0": 1.0, "b0": 0.5, "fit_intercept": intercept}
    path = regression_path(convert(x), y, rates, shrinkages, cv=cv, **kwargs)
    splits = list((KFold(cv) if cv == 3 else cv).split(x))
    for row, rate in zip(path, rates, strict=True):
        for model, shrinkage in zip(row, shrinkages, strict=True):
            expected = held_out_by_refits(x, y, splits, np.broadcast_to(rate, p), shrinkage, 1.0, 0.5, intercept)
            np.testing.assert_allclose(model.cv_log_density_, expected, rtol=1e-8)
            alone = EntropicLinearRegression(rate, shrinkage, **kwargs).fit(x, y)
            np.testing.assert_allclose(model.coef_, alone.coef_, atol=1e-10)
    assert not hasattr(regression_path(x, y, [0.1], [1.0])[0][0], "cv_log_density_")


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("draws_masks", [True, False])
@pytest.mark.parametrize(("n", "p"), [(60, 5), (20, 40)])
def test_log_z_chooses_no_rate(n, p, draws_masks, intercept):
    """Z_f(λ0) < Z_0(λ0 / (1-f)²): rate 0 wins over any data, those that a model with dropout drew as well."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, p))
    seen = x * (rng.random((n, p)) < 0.5) if draws_masks else x
    y = seen @ rng.normal(size=p) + rng.normal(size=n)
    for rate in (0.1, 0.5, 0.9):
        for shrinkage in (0.01, 1.0, 100.0):
            model, plain = (
                EntropicLinearRegression(f, s, a0=1.0, b0=1.0, fit_intercept=intercept).fit(x, y)
                for f, s in ((rate, shrinkage), (0.0, shrinkage / (1 - rate) ** 2))
            )
            assert model.log_normalizer() < plain.log_normalizer()


def test_held_out_density_chooses_the_rate_that_predicts():
    """Junk covariates, a prior far too wide (ENT's misspecification): new data agree with it, not with log Z."""
    rng = np.random.default_rng(0)
    weights = np.r_[np.ones(3), np.zeros(27)]
    x, new = rng.normal(size=(40, 30)), rng.normal(size=(4000, 30))
    y, y_new = x @ weights + rng.normal(size=40), new @ weights + rng.normal(size=4000)
    (models,) = zip(*regression_path(x, y, [0.0, 0.1, 0.3, 0.5], [1e-3], cv=5), strict=True)
    truth = [model.predictive(new).log_prob(torch.as_tensor(y_new)).mean() for model in models]
    best = max(models, key=lambda m: m.cv_log_density_.mean())
    assert best.rate > 0
    assert max(models, key=lambda m: m.log_normalizer()).rate == 0
    assert truth[models.index(best)] > truth[0] + 0.3


def test_leave_one_out_of_ordinary_regression_is_in_closed_form():
    """At rate 0, flat: residuals over 1 - leverage, and a Student-t of n - p - 2 degrees of freedom."""
    x, y = data(15, 3)
    ((model,),) = regression_path(x, y, [0.0], [1e-12], cv=LeaveOneOut())
    full = np.column_stack([np.ones(15), x])
    leverage = np.diag(full @ np.linalg.solve(full.T @ full, full.T))
    residual = y - full @ np.linalg.lstsq(full, y, rcond=None)[0]
    without = residual / (1 - leverage)
    # Jeffreys' prior with an intercept and three shrunk coefficients: a = (n - 1 - 1) / 2, the p of σ stay in the prior
    squares = residual @ residual - residual**2 / (1 - leverage)
    scale = np.sqrt(squares / 13 / (1 - leverage))
    np.testing.assert_allclose(model.cv_log_density_, scipy.stats.t.logpdf(without, 13, 0, scale), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": []}, "rates must have one value or more"),
        ({"shrinkages": iter(())}, "shrinkages must have one value or more"),
        ({"cv": 1}, "n_splits"),
        ({"cv": 1000}, "n_splits=1000"),
        ({"cv": "loo"}, "cv"),
        ({"cv": []}, "cv must hold out"),
    ],
)
def test_wrong_grids(arguments, message):
    x, y = data(10, 2)
    with pytest.raises(ValueError, match=message):
        regression_path(x, y, **{"rates": [0.1], "shrinkages": [1.0], **arguments})


def test_grids_may_be_iterators():
    x, y = data(10, 2)
    path = regression_path(x, y, iter([0.0, 0.5]), iter([0.1, 1.0]))
    assert [[m.rate, m.shrinkage] for row in path for m in row] == [[0.0, 0.1], [0.0, 1.0], [0.5, 0.1], [0.5, 1.0]]


def test_models_of_a_table_know_its_columns():
    x, y = data(10, 2)
    table = pd.DataFrame(x, columns=["a", "b"])
    for row in regression_path(table, y, [0.0, 0.5], [0.1, 1.0], cv=2):
        for model in row:
            assert list(model.feature_names_in_) == ["a", "b"]
            np.testing.assert_allclose(model.predict(table), model.predict(table, return_std=True)[0])
