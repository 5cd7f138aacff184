"""The paths of figure 1 (a) and what the paper says of them; honest intervals."""

import matplotlib.image
import numpy as np
import pytest

from examples.entropic.qspr import COVERAGE_RATES, main, standardised
from tests.examples.staged import staged

pytestmark = staged


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("qspr") / "made when missing"
    return main(["--splits", "3", "--outputs", str(outputs)]), outputs


def test_every_covariate_is_positively_correlated_with_the_response():
    x, y, names = standardised()
    assert x.shape == (19, 7)
    assert "-DGR" in names
    assert (x.T @ y > 0).all()


def test_dropout_goes_to_an_all_positive_solution_and_lasso_does_not(run):
    paths = run[0]["paths"]
    x, y, _ = standardised()
    dropout = paths["dropout, λ0 = 0"][1]
    least_squares = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(dropout[0], least_squares, rtol=1e-8)
    assert (least_squares < 0).any()
    assert (dropout[-1] > 0).all()
    np.testing.assert_allclose(dropout[-1], x.T @ y / (x**2).sum(0), rtol=0.02)
    assert not (paths["lasso"][1] > 0).all(1).any()
    ridge = paths["ridge"][1]
    assert abs(ridge[-1]).max() < 0.1 * dropout[-1].min()  # ridge shrinks to nothing, dropout does not


def test_intervals_hold_about_their_mass(run):
    for by_rate in run[0]["coverage"].values():
        assert list(by_rate) == list(COVERAGE_RATES)
        for fifty, ninety, rmse in by_rate.values():
            assert 0.3 < fifty < 0.65
            assert 0.78 < ninety <= 1.0
            assert rmse > 0


def test_picture(run):
    assert matplotlib.image.imread(run[1] / "entropic_qspr.png").std() > 0.01
