"""What is asked of a fit is answered by the fit: parameters that are set later are those of the next one."""

import numpy as np
import pandas as pd
import pytest

from pyro_dropout.entropic import EntropicLinearRegression
from tests.support.scenarios import linear_data as data

pytestmark = pytest.mark.filterwarnings("ignore:\\s*ArviZ is undergoing a major refactor:FutureWarning")

SETTINGS = {"rate": 0.3, "shrinkage": 0.7, "a0": 4.0, "b0": 2.0, "fit_intercept": True}
LATER = {"rate": np.full(4, 0.8), "shrinkage": 50.0, "a0": 9.0, "b0": 0.0, "fit_intercept": False}


def answers(model, new, y):
    exported = model.to_arviz(new, y, n_draws=4, random_state=0)
    draws = model.sample(4, random_state=0)
    return {
        "mean": model.predict(new),
        "std": model.predict(new, return_std=True)[1],
        "dropout": model.predict(new, return_std=True, dropout=True)[1],
        "predictive": model.predictive(new).log_prob(model.predictive(new).loc + 1.0).numpy(),
        "interval": model.predictive_interval(new),
        "credible": model.credible_interval(),
        "draws": np.column_stack(draws),
        "log_z": model.log_normalizer(),
        "posterior": model.posterior_.mean.numpy(),
        "exported": np.asarray(exported["posterior_predictive"]["y"]),
        "density": np.concatenate([np.asarray(v) for v in exported["log_likelihood"].data_vars.values()]),
        "r2": model.score(new, y),
    }


@pytest.mark.parametrize("n", [30, 3])
@pytest.mark.parametrize("later", [[name] for name in LATER] + [list(LATER)], ids=lambda names: "-".join(names))
def test_parameters_that_are_set_after_a_fit_do_not_change_its_answers(n, later):
    x, y = data(n, 4)
    new, y_new = data(5, 4, seed=1)
    model = EntropicLinearRegression(**SETTINGS).fit(x, y)
    before = answers(model, new, y_new)
    model.set_params(**{name: LATER[name] for name in later})
    after = answers(model, new, y_new)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    refitted = EntropicLinearRegression(**model.get_params()).fit(x, y)
    np.testing.assert_allclose(model.fit(x, y).predict(new), refitted.predict(new))


def test_a_flat_prior_that_is_set_later_is_not_that_of_the_fit():
    x, y = data(20, 3)
    model = EntropicLinearRegression(**SETTINGS).fit(x, y)
    before = model.log_normalizer()
    assert model.set_params(shrinkage=0.0).log_normalizer() == before
    flat = EntropicLinearRegression(0.1, 0.0).fit(x, y).set_params(shrinkage=1.0)
    with pytest.raises(ValueError, match="shrinkage = 0"):
        flat.log_normalizer()


@pytest.mark.parametrize("n", [30, 3])
def test_chunks_after_new_parameters_are_all_of_the_new_ones(n):
    x, y = data(2 * n, 4)
    model = EntropicLinearRegression(**SETTINGS).fit(x[:n], y[:n])
    model.set_params(**LATER).partial_fit(x[n:], y[n:])
    whole = EntropicLinearRegression(**LATER).fit(x, y)
    np.testing.assert_allclose(model.predict(x, return_std=True), whole.predict(x, return_std=True))


@pytest.mark.parametrize("wrong", [{"shrinkage": -1.0}, {"rate": 1.0}])
def test_a_failed_fit_leaves_the_fit_before_it(wrong):
    x, y = data(20, 4)
    model = EntropicLinearRegression(**SETTINGS).fit(x, y)
    before = model.predict(x, return_std=True)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        model.set_params(**wrong).fit(x[:, :2], y)
    model.set_params(**SETTINGS)
    np.testing.assert_array_equal(model.predict(x, return_std=True), before)
    twice = EntropicLinearRegression(**SETTINGS).fit(np.tile(x, (2, 1)), np.tile(y, 2))
    np.testing.assert_allclose(model.partial_fit(x, y).coef_, twice.coef_)


def test_predictions_of_all_kinds_read_the_same_covariates():
    """Lists, tables and single precision, by names and in the order of the fit."""
    x, y = data(20, 3)
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    model = EntropicLinearRegression(0.2).fit(table, y)
    plain = EntropicLinearRegression(0.2).fit(x, y)
    np.testing.assert_allclose(model.predictive(table).loc, plain.predict(x))
    np.testing.assert_allclose(plain.predictive(x.tolist()).scale, plain.predictive(x).scale)
    np.testing.assert_allclose(plain.predictive_interval(x.astype(np.float32)), plain.predictive_interval(x), rtol=1e-5)
    for method in (model.predictive, model.predictive_interval, model.predict):
        with pytest.raises(ValueError, match="feature names"):
            method(table[["b", "a", "c"]])
    with pytest.raises(ValueError, match="expecting 3 features"):
        plain.predictive(x[:, :2])


@pytest.mark.parametrize("name", ["shrinkage", "a0", "b0"])
@pytest.mark.parametrize("value", ["1", None, [1.0], True, 1j, np.complex64(1)])
def test_parameters_that_are_no_numbers_are_named(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a number, but found"):
        EntropicLinearRegression(**{name: value}).fit(*data(10, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.set_params(rate="0.1").fit(*data(10, 3)), TypeError, "rate must be a number, or one for each"),
        (lambda m: m.set_params(rate=None).fit(*data(10, 3)), TypeError, "rate must be a number, or one for each"),
        (lambda m: m.set_params(rate=np.nan).fit(*data(10, 3)), ValueError, r"rate .*lies in \[0, 1\)"),
        (
            lambda m: m.set_params(fit_intercept="no").fit(*data(10, 3)),
            TypeError,
            "fit_intercept must be True or False",
        ),
        (lambda m: m.sample(0), ValueError, "n_draws must be an integer of at least 1, but found 0"),
        (lambda m: m.sample(2.5), ValueError, "n_draws must be an integer of at least 1, but found 2.5"),
        (lambda m: m.to_arviz(n_draws=-1), ValueError, "n_draws must be"),
        (lambda m: m.credible_interval("a"), ValueError, "mass is the probability"),
        (lambda m: m.credible_interval(index=[3]), ValueError, "index must be below 3 covariates"),
        (lambda m: m.posterior_.marginal(-4), ValueError, "index must be below 3 covariates"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(EntropicLinearRegression().fit(*data(10, 3)))


def test_coefficients_are_picked_from_either_end_and_by_masks():
    model = EntropicLinearRegression().fit(*data(10, 3))
    np.testing.assert_array_equal(model.credible_interval(index=-1), model.credible_interval()[2:])
    by_mask = model.credible_interval(index=np.array([False, True, False]))
    np.testing.assert_array_equal(by_mask, model.credible_interval()[1:2])
