"""Several outputs: each is the fit of that output alone, though one Λ serves all."""

from itertools import chain

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, LeaveOneOut

from pyro_dropout.entropic import EntropicLinearRegression, _rows, regression_path
from pyro_dropout.entropic._gradients import conjugate_gradients
from tests.support.scenarios import linear_data

SIZES = [(30, 5), (12, 40), (320, 400)]  # sums of products, a factor of n × n, conjugate gradients
FORMATS = [np.asarray, sp.csr_array, torch.as_tensor]
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def data(n, p, seed=0):
    """Three outputs of different scales, and weights."""
    x, y = linear_data(n, p, seed)
    rng = np.random.default_rng(seed)
    outputs = np.column_stack([y, 100.0 - 30.0 * y + 10.0 * rng.normal(size=n), rng.normal(size=n)])
    return x, outputs, rng.gamma(1.0, 1.0, size=n) + 0.1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("convert", FORMATS)
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_each_output_is_the_fit_of_it_alone(n, p, convert, intercept, weighted):
    x, y, v = data(n, p)
    v = v if weighted else None
    new = convert(data(4, p, seed=1)[0])
    settings = {"rate": 0.3, "shrinkage": 0.7, "a0": 1.5, "b0": 0.8, "fit_intercept": intercept}
    model = EntropicLinearRegression(**settings).fit(convert(x), convert(y) if convert is torch.as_tensor else y, v)
    assert (model.coef_.shape, model.predict(new).shape) == ((3, p), (4, 3))
    for k in range(3):
        alone = EntropicLinearRegression(**settings).fit(convert(x), y[:, k], v)
        np.testing.assert_allclose(model.coef_[k], alone.coef_, **CLOSE)
        assert model.concentration_ == alone.concentration_
        assert model.intercept_[k] == pytest.approx(alone.intercept_)
        assert model.noise_rate_[k] == pytest.approx(alone.noise_rate_)
        assert model.log_normalizer()[k] == pytest.approx(alone.log_normalizer())
        for dropout in (False, True):
            found, expected = (m.predict(new, return_std=True, dropout=dropout) for m in (model, alone))
            np.testing.assert_allclose(np.array(found)[..., k], expected, **CLOSE)
        np.testing.assert_allclose(model.predictive(new).scale[:, k], alone.predictive(new).scale, **CLOSE)
        np.testing.assert_allclose(model.predictive_interval(new)[:, k], alone.predictive_interval(new), **CLOSE)
        np.testing.assert_allclose(
            model.credible_interval(0.8, [0, 2])[k], alone.credible_interval(0.8, [0, 2]), **CLOSE
        )
        w = torch.ones(p + 1, dtype=torch.float64)
        torch.testing.assert_close(model.posterior_[k].log_prob(w), alone.posterior_.log_prob(w))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_rate_zero_is_ridge_of_several_outputs(n, p, intercept):
    x, y, v = data(n, p)
    model = EntropicLinearRegression(0.0, 2.5, fit_intercept=intercept).fit(x, y, v)
    ridge = Ridge(2.5, fit_intercept=intercept, solver="cholesky").fit(x, y, v)
    np.testing.assert_allclose(model.coef_, ridge.coef_, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, ridge.intercept_ * np.ones(3), atol=1e-7)
    assert model.score(x, y, v) == pytest.approx(ridge.score(x, y, v))


def test_a_column_is_several_outputs_of_one():
    x, y, _ = data(20, 3)
    model = EntropicLinearRegression(0.2).fit(x, y[:, :1])
    peer = LinearRegression().fit(x, y[:, :1])
    for name in ("coef_", "intercept_"):
        assert getattr(model, name).shape == getattr(peer, name).shape
    assert model.predict(x).shape == peer.predict(x).shape == (20, 1)
    flat = EntropicLinearRegression(0.2).fit(x, y[:, 0])
    np.testing.assert_allclose(model.predict(x)[:, 0], flat.predict(x))
    assert isinstance(flat.intercept_, float)
    assert isinstance(flat.noise_rate_, float)
    assert isinstance(flat.log_normalizer(), float)


@pytest.mark.parametrize("kinds", ["ddd", "dsd", "sds"])
@pytest.mark.parametrize("p", [5, 45, 200])
def test_chunks_of_several_outputs_are_the_whole(p, kinds):
    x, y, v = data(60, p)
    parts = EntropicLinearRegression(0.3)
    for kind, part in zip(kinds, np.split(np.arange(60), 3), strict=True):
        parts.partial_fit(sp.csr_array(x[part]) if kind == "s" else x[part], y[part], v[part])
    whole = EntropicLinearRegression(0.3).fit(x, y, v)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(parts.predict(x, return_std=True), whole.predict(x, return_std=True), rtol=1e-7)
    for wrong, message in ((y[:, :2], r"\[n, 2\]"), (y[:, 0], r"\[n\]")):
        with pytest.raises(ValueError, match=r"y must be \[n, 3\], as in the data before, but found " + message):
            parts.partial_fit(x, wrong)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("convert", FORMATS)
@pytest.mark.parametrize("cv", [KFold(3, shuffle=True, random_state=0), LeaveOneOut()], ids=["3", "leave-one-out"])
@pytest.mark.parametrize("p", [4, 40])
def test_a_path_of_several_outputs_is_that_of_each(p, cv, convert):
    x, y, v = data(24, p)
    path = regression_path(convert(x), y, [0.0, 0.4], [0.3, 3.0], cv=cv, sample_weight=v, b0=0.5)
    for k in range(3):
        alone = regression_path(convert(x), y[:, k], [0.0, 0.4], [0.3, 3.0], cv=cv, sample_weight=v, b0=0.5)
        for one, several in zip(chain(*alone), chain(*path), strict=True):
            np.testing.assert_allclose(several.coef_[k], one.coef_, **CLOSE)
            np.testing.assert_allclose(several.cv_log_density_[:, k], one.cv_log_density_, **CLOSE)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_export_has_a_dimension_of_outputs(weighted):
    x, y, v = data(20, 4)
    weights = v if weighted else None
    table = pd.DataFrame(x, columns=list("abcd"))
    model = EntropicLinearRegression(0.3).fit(table, y, weights)
    exported = model.to_arviz(table, y, n_draws=5, random_state=0, sample_weight=weights)
    posterior, likelihood = exported["posterior"], exported["log_likelihood"]
    assert posterior["coef"].dims == ("chain", "draw", "output", "feature")
    assert list(posterior["coef"]["feature"].values) == list("abcd")
    for name in ("intercept", "noise_variance"):
        assert posterior[name].dims == ("chain", "draw", "output")
    for group in ("posterior_predictive", "log_likelihood"):
        assert exported[group]["y"].dims == ("chain", "draw", "data", "output")
    np.testing.assert_array_equal(exported["observed_data"]["y"], y)
    draws = model.sample(5, np.random.RandomState(0))
    for k in range(3):
        mean = draws.intercept[:, k, None] + draws.coef[:, k] @ x.T
        variance = draws.noise_variance[:, k, None] / (v if weighted else 1.0)
        normal = torch.distributions.Normal(torch.tensor(mean), torch.tensor(variance**0.5 * np.ones(20)))
        expected = normal.log_prob(torch.tensor(y[:, k])).numpy()
        np.testing.assert_allclose(likelihood["y"].values[0, ..., k], expected)
        centered = x - (v @ x / v.sum() if weighted else x.mean(0))
        masks = (0.3 / 0.7 * draws.coef[:, k] ** 2) @ (centered**2).T
        np.testing.assert_allclose(likelihood["y_constrained"].values[0, ..., k], expected - 0.5 * masks / variance)
    with pytest.raises(ValueError, match=r"y must be \[n, 3\], as in the fit, but found \[n\]"):
        model.to_arviz(table, y[:, 0])


def test_gradients_of_several_systems_have_steps_of_their_own():
    rng = np.random.default_rng(0)
    root = torch.as_tensor(rng.normal(size=(40, 12)))
    b = torch.as_tensor(rng.normal(size=(40, 3))) * torch.tensor([1.0, 1e6, 0.0])
    b[:, 1] = 1e6 * root[:, 0]  # done before the others
    matrix = torch.eye(40, dtype=torch.float64) + root @ root.T
    found = conjugate_gradients(matrix.matmul, b, 100)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b), rtol=1e-10, atol=1e-11)
    assert conjugate_gradients(matrix.matmul, b, 2) is None


def test_outputs_take_the_products_of_one_and_many_outputs_a_factor(monkeypatch):
    count = []

    def counted(apply, b, iterations):
        return conjugate_gradients(lambda v: count.append(1) or apply(v), b, iterations)

    monkeypatch.setattr(_rows, "conjugate_gradients", counted)
    x, y, _ = data(320, 400)
    EntropicLinearRegression(0.5).fit(x, y[:, 0])
    one = len(count)
    model = EntropicLinearRegression(0.5).fit(x, y)
    assert 0 < len(count) - one < 1.5 * one
    assert "factor" not in vars(model._fitted.precision)
    many = EntropicLinearRegression(0.5).fit(x, np.tile(y, (1, 2)))
    assert "factor" in vars(many._fitted.precision)
    np.testing.assert_allclose(many.coef_[3:], model.coef_, **CLOSE)


def test_scikit_learn_searches_over_several_outputs_with_weights():
    x, y, v = data(60, 5)
    search = GridSearchCV(EntropicLinearRegression(), {"rate": [0.0, 0.9]}, cv=3).fit(x, y, sample_weight=v)
    assert search.best_params_ == {"rate": 0.0}
    np.testing.assert_allclose(search.predict(x), EntropicLinearRegression(0.0).fit(x, y, v).predict(x))


def test_wrong_outputs_are_named():
    x, y, _ = data(10, 3)
    with pytest.raises(TypeError, match="y must be dense, but found a sparse matrix"):
        EntropicLinearRegression().fit(x, sp.csr_array(y))
    with pytest.raises(ValueError, match=r"y must have one output or more, but found shape \(10, 0\)"):
        EntropicLinearRegression().fit(x, y[:, :0])
    with pytest.raises(ValueError, match="dim 3"):
        EntropicLinearRegression().fit(x, y[..., None])
    y[:, 1] = 2.0
    with pytest.raises(ValueError, match=r"the targets of outputs \[1\] are fitted without error"):
        EntropicLinearRegression().fit(x, y)
    assert np.isfinite(EntropicLinearRegression(b0=1.0).fit(x, y).coef_).all()
