"""The misspecification study: its closed form is the library's, its output comes out, and dropout ignores units."""

import contextlib
import io

import matplotlib.image
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from examples.entropic.misspecification import (
    CONDITIONS,
    DROPOUT,
    PREDICTIONS,
    SETTINGS,
    WIDTHS,
    coefficients,
    held_out_errors,
    main,
    random_data,
)
from pyro_dropout.entropic import EntropicLinearRegression


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Tables of a short run, what it printed, and where its picture is."""
    outputs = tmp_path_factory.mktemp("misspecification") / "made when missing"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        tables = main(["--data-sets", "200", "--outputs", str(outputs)])
    return tables, printed.getvalue(), outputs / "entropic_misspecification.png"


def data(p, sets=4):
    return random_data(p, sets, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", WIDTHS)
def test_closed_form_and_errors_are_those_of_the_library(p):
    designs = data(p)
    errors = held_out_errors(designs)
    for k in (0, DROPOUT[0], DROPOUT[9], DROPOUT[-1], len(SETTINGS) - 1):
        shrinkage, f = SETTINGS[k]
        for i in range(4):
            for column, (x, y, x_new, y_new) in zip((0, 2), designs, strict=True):
                model = EntropicLinearRegression(rate=f, shrinkage=shrinkage, fit_intercept=False)
                model.fit(x[i], y[i, :, 0])
                ours = coefficients(x, y, shrinkage, f)[i, :, 0]
                mu = model.posterior_.loc
                np.testing.assert_allclose(ours.numpy(), mu, rtol=1e-8, atol=1e-8)
                for which, predicted in enumerate((model.predict(x_new[i]), (x_new[i] @ mu).numpy())):
                    residuals = predicted - y_new[i, :, 0].numpy()
                    assert errors[k, which, i, column] == pytest.approx((residuals**2).mean(), rel=1e-8)


@pytest.mark.parametrize("p", WIDTHS)
def test_data_are_as_the_paper_has_them(p):
    (x, y, x_new, y_new), (shifted, y_shifted, shifted_new, _) = data(p, sets=4000)
    assert torch.linalg.matrix_rank(x[:10]).tolist() == [10] * 10
    ones = torch.ones(p, dtype=torch.float64)
    torch.testing.assert_close(x.square().mean((0, 1)), ones, rtol=0.05, atol=0)  # columns of L have length 1
    for k, nonzero in enumerate((p, 10)):  # variance of the weights, and of the noise
        assert y_new[..., k].square().mean() == pytest.approx(nonzero + 1, rel=0.06)
    assert (y[..., 0] == y[..., 1]).all() == (p == 10)
    torch.testing.assert_close(y_shifted, y[..., :1])
    scale = shifted[:, :1] / x[:, :1]
    torch.testing.assert_close(shifted_new, x_new * scale)
    assert scale.mean() == pytest.approx(0, abs=0.03)
    assert scale.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("p", WIDTHS)
def test_without_shrinkage_dropout_is_ridge_of_scaled_covariates_and_ignores_the_shift(p):
    f = 0.05
    before, after = ((1 - f) * x_new @ coefficients(x, y, 1e-13, f) for x, y, x_new, _ in data(p))
    torch.testing.assert_close(after[..., 0], before[..., 0], rtol=1e-4, atol=1e-4)
    x, y, x_new, _ = (tensor[0].numpy() for tensor in data(p)[0])
    size = np.sqrt((x**2).mean(0))
    ridge = Ridge(20 * f / (1 - f), fit_intercept=False).fit(x / size, y).predict(x_new / size)
    np.testing.assert_allclose(before[0].numpy(), ridge, rtol=1e-6, atol=1e-6)


def test_dropout_is_on_par_where_ridge_is_right_and_better_after_the_shift(run):
    cells = run[0][PREDICTIONS[0]]
    for p in WIDTHS:
        for condition in CONDITIONS[:2]:
            difference = cells[p, condition]["dropout - best ridge"]
            assert abs(difference.mean) < 0.03 * cells[p, condition]["ridge, best λ0"].mean
    for p in (10, 20):
        assert cells[p, "covariate shift"]["dropout - ridge, λ0 = 1"].mean < -0.2
        cost = run[0]["cost"][p, "covariate shift"]
        assert cost["ridge, λ0 = 1"].mean > 4 * cost["ridge, λ0 = 1"].error
        assert abs(cost["dropout"].mean) < 0.05
    shift = cells[10, "covariate shift"]["dropout - best ridge"]
    assert shift.mean < -4 * shift.error


def test_tables_are_printed_and_the_picture_is_written(run):
    tables, printed, picture = run
    assert set(tables) == {*PREDICTIONS, "cost"}
    for name in PREDICTIONS:
        assert f"predicts {name}" in printed
        assert set(tables[name]) == {(p, condition) for p in WIDTHS for condition in CONDITIONS}
        for estimates in tables[name].values():
            assert all(str(estimate) in printed for estimate in estimates.values())
    assert matplotlib.image.imread(picture)[..., :3].std() > 0.05
